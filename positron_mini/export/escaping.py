"""Untrusted text of a model or a file, made safe to show in a document."""

from __future__ import annotations

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_INVISIBLE = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
_NAMED = {code: f"\u27e8U+{code:04X}\u27e9" for code in _INVISIBLE}
_LONE = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_SHOWN = {**_PICTURES, **_NAMED, **_LONE}


def visible(text: str) -> str:
    """The text with control and bidirectional characters made visible; newlines and tabs stay."""
    return text.translate(_SHOWN)


def escaped(text: str) -> str:
    """The text escaped for a cell of a Markdown table: no tags, links or emphasis; a line break becomes `<br>`."""
    safe = visible(text.strip()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = "".join(f"\\{c}" if c in "\\`*_[]#|~$!" else c for c in safe)
    return safe.replace("\t", " ").replace("\n", "<br>")
