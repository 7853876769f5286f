"""Clean stories: repair broken characters, straighten quotes, drop truncated and repeated stories, count everything.

Parts of TinyStories were decoded with the wrong character set (`â€œ` for an opening quote), and some stories stop in mid-sentence.
A model learns both. What cannot be repaired with certainty is dropped, never guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass
class CleanStats:
    """Counts of cleaning, in stories: `stories` = `kept` + `truncated` + `broken` + `empty` + `repeated`."""

    stories: int = 0
    kept: int = 0
    mended: int = 0  # kept, with broken characters repaired
    straightened: int = 0  # kept, with curly quotes made straight
    truncated: int = 0
    broken: int = 0
    empty: int = 0
    repeated: int = 0

    def sentence(self) -> str:
        """The counts as one line for a person."""
        return (
            f"{self.stories:,} stories: {self.kept:,} kept ({self.mended:,} with broken characters mended, {self.straightened:,} with "
            f"curly quotes straightened); left out: {self.truncated:,} cut off, {self.broken:,} damaged, {self.empty:,} empty, "
            f"{self.repeated:,} repeated"
        )


def _windows_1252_bytes() -> dict[str, int]:
    """Byte behind each non-ASCII character of Windows-1252; its five unassigned bytes count as Latin-1, as in browsers."""
    table = {}
    for byte in range(0x80, 0x100):
        raw = bytes([byte])
        table[raw.decode("cp1252", errors="ignore") or raw.decode("latin-1")] = byte
        table.setdefault(raw.decode("latin-1"), byte)
    return table


_BYTE_OF = _windows_1252_bytes()


def _class_of(first: int, last: int) -> str:
    return "[" + "".join(re.escape(character) for character, byte in _BYTE_OF.items() if first <= byte <= last) + "]"


_TAIL = _class_of(0x80, 0xBF)
# UTF-8 lead bytes with their continuation bytes, as they look when read as Windows-1252
_MOJIBAKE = re.compile(f"{_class_of(0xC2, 0xDF)}{_TAIL}|{_class_of(0xE0, 0xEF)}{_TAIL}{{2}}|{_class_of(0xF0, 0xF4)}{_TAIL}{{3}}")
_LOST_CLOSING_QUOTE = re.compile("â€(?=[\\s.,!?;:)]|$)")  # the third byte of ” has no Windows-1252 character and was often lost
_MISREAD = re.compile("[âÃÂ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")

_STRAIGHT = str.maketrans(dict.fromkeys("“”„‟«»″", '"') | dict.fromkeys("‘’‚‛′´`", "'"))
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000\t", " "))
_INVISIBLE = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")

# One or more U+FFFD replace one lost character; next to them only a quote or an apostrophe is possible.
_LOST_APOSTROPHE = re.compile("(?<=[A-Za-z])\ufffd+(?=(?:s|t|m|d|re|ve|ll)\\b)")
_LOST_OPENING = re.compile("(?:(?<=\\s)|^)\ufffd+(?=[A-Z])", re.MULTILINE)
_LOST_CLOSING = re.compile("(?<=[.,!?])\ufffd+(?=\\s|$)", re.MULTILINE)

_SENTENCE_END = re.compile(r"""[.!?…]["')\]*_~]*\Z""")
_THE_END = re.compile(r"\bthe end\W*\Z", re.IGNORECASE)
_LINE_EDGES = re.compile(r" +$", re.MULTILINE)


def _decoded(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTE_OF[character] for character in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def mend(text: str) -> str:
    """Repair misread UTF-8, and restore lost quotes where nothing else is possible; sound text stays unchanged."""
    if text.isascii():
        return text
    for _ in range(3):  # some stories were misread twice
        mended = _MOJIBAKE.sub(_decoded, text)
        if mended == text:
            break
        text = mended
    text = _LOST_CLOSING_QUOTE.sub('"', text)
    text = _LOST_APOSTROPHE.sub("'", text)
    text = _LOST_OPENING.sub('"', text)
    return _LOST_CLOSING.sub('"', text)


def is_damaged(text: str) -> bool:
    """Whether misread or lost characters are left in the text."""
    return "\ufffd" in text or _MISREAD.search(text) is not None


def is_truncated(text: str) -> bool:
    """Whether the text stops before a sentence ends. Closing quotes and brackets may follow the full stop; a bare "The end" is an end.
    """
    return _SENTENCE_END.search(text) is None and _THE_END.search(text) is None


def clean_story(text: str, stats: CleanStats) -> str | None:
    """The clean story, or None if it is empty, damaged beyond repair or truncated. Counts it in `stats` and changes nothing else."""
    stats.stories += 1
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    mended = mend(text)
    straight = mended if mended.isascii() and "`" not in mended else mended.translate(_STRAIGHT)
    clean = _LINE_EDGES.sub("", _INVISIBLE.sub("", straight.translate(_SPACES))).strip()
    if not any(character.isalnum() for character in clean):
        stats.empty += 1
    elif is_damaged(clean):
        stats.broken += 1
    elif is_truncated(clean):
        stats.truncated += 1
    else:
        stats.kept += 1
        stats.mended += mended != text
        stats.straightened += straight != mended
        return clean
    return None


def clean_stories(stories: Iterable[str], stats: CleanStats, seen: set[bytes]) -> Iterator[str]:
    """Clean stories that are not in `seen`, in order; `seen` grows by 8 bytes of hash for each.

    Clean the validation stories first, with the same set, to keep them out of the training stories.
    """
    for text in stories:
        before = stats.mended, stats.straightened
        story = clean_story(text, stats)
        if story is None:
            continue
        key = hashlib.blake2b(story.encode("utf-8"), digest_size=8).digest()
        if key in seen:
            stats.kept -= 1
            stats.mended, stats.straightened = before
            stats.repeated += 1
            continue
        seen.add(key)
        yield story
