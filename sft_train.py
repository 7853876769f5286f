"""`python sft_train.py ARGS` is `positron sft ARGS`. The code is in positron_mini/."""

import sys

from positron_mini.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sft", *sys.argv[1:]]))
