"""`python -m positron_mini COMMAND ARGS` is `positron COMMAND ARGS`."""

from positron_mini.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
