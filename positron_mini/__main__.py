"""`python -m positron_mini COMMAND ARGS` is `positron COMMAND ARGS`."""

import os
import sys


def run() -> int:
    """The exit code of the command line."""
    from positron_mini.cli import main

    try:
        return main()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        raise


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which -m puts first: a module that lies there is not one of ours
    code = run()
    if "WORLD_SIZE" in os.environ:  # one of several: PyTorch's threads may still hold Python objects, and Python must not end under them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
