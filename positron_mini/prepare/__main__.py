"""`python -m positron_mini.prepare STAGE FOLDER` is a worker of the process that started it."""

import sys

from positron_mini.prepare.workers import serve

if __name__ == "__main__":
    serve(*sys.argv[1:])
