"""`python generate.py ARGS` is `positron generate ARGS`. The code is in positron_mini/."""

import sys

from positron_mini.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["generate", *sys.argv[1:]]))
