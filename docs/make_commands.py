"""Writes docs/commands.md from the help of every command: python docs/make_commands.py. A test holds the file to it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["COLUMNS"] = "110"  # before the help is drawn: its width

from positron_mini.cli import COMMANDS
from positron_mini.cli.completion import help_of

PAGE = Path(__file__).with_name("commands.md")


def commands_page() -> str:
    """The text of docs/commands.md."""
    contents = "\n".join(f"- [`{name}`](#positron-{name}): {what}" for name, (_, what) in COMMANDS.items())
    helps = {name: "\n".join(line.rstrip() for line in help_of(name).strip().splitlines()) for name in COMMANDS}
    parts = [f"## positron {name}\n\n```text\n{text}\n```\n" for name, text in helps.items()]
    head = "# Every command and flag\n\nThis page is made from `positron COMMAND -h` by `docs/make_commands.py`.\n"
    return f"{head}\n{contents}\n\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(commands_page(), encoding="utf-8")
