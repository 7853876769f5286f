"""`python train.py ARGS` is `positron train ARGS`. The code is in positron_mini/."""

import sys

from positron_mini.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
