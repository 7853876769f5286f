"""Text of a model or of a file, shown in a document: seen as it is, and never obeyed."""

from __future__ import annotations

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_INVISIBLE = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_NAMED = {code: f"\u27e8U+{code:04X}\u27e9" for code in _INVISIBLE}
_LONE = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_SHOWN = {**_PICTURES, **_NAMED, **_LONE}


def visible(text: str) -> str:
    """The text with control characters and those that turn the direction of writing made visible; newlines and tabs stay."""
    return text.translate(_SHOWN)


def escaped(text: str) -> str:
    """The text as Markdown that is nothing but text, fit for a cell of a table: no tag, no link, no emphasis; a line break stays one."""
    safe = visible(text.strip()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = "".join(f"\\{c}" if c in "\\`*_[]#|~$!" else c for c in safe)
    return safe.replace("\t", " ").replace("\n", "<br>")
