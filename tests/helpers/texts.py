"""Texts: story-like English made from a seed, and 300 texts on which tokenizers go wrong."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

import pytest
from hypothesis import strategies as st

from positron_mini.text.corpus.files import ReadStats, read_documents
from positron_mini.text.tokenizer import IM_END, IM_START, Tokenizer, train_tokenizer

# --- stories ----------------------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words("Lily Tom Mia Ben Zoe Max Anna Sam Lucy Jack Sue Tim Bella Leo Nora Finn")
_THINGS = _words(
    "ball dog cat tree boat house bird river garden apple cake star moon friend flower rabbit box kite hat stone bridge bear duck frog "
    "window blanket puddle mountain butterfly sandwich umbrella candle basket pillow carrot"
)
_ADJECTIVES = _words(
    "big small red happy sad shiny old little brave kind funny quiet warm soft yellow tiny gentle careful curious wonderful"
)
_VERBS = _words("found saw liked wanted carried painted hugged followed lost shared fixed dropped washed counted remembered drew")
_ENDINGS = ("They laughed.", "Mom smiled!", '"Thank you," said {name}.', "It was 7 o'clock.", "Why?", "The end.", "{name} slept — at last…")


def made_story(rng: random.Random) -> str:
    """One story of a few lines, with names, quotes, digits and paragraphs."""
    name = rng.choice(_NAMES)
    lines = [f"Once upon a time, there was a {rng.choice(_ADJECTIVES)} {rng.choice(_THINGS)} named {name}."]
    for _ in range(rng.randint(2, 8)):
        lines.append(f"{name} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {rng.choice(_THINGS)} and a {rng.choice(_THINGS)}.")
    lines.append(rng.choice(_ENDINGS).format(name=name))
    return rng.choice((" ", "\n", "\n\n")).join(lines)


def made_stories(count: int, seed: int = 0) -> list[str]:
    """`count` stories; equal arguments give equal stories."""
    rng = random.Random(seed)
    return [made_story(rng) for _ in range(count)]


# --- awkward texts ----------------------------------------------------------------------------------------------------------------------

_SEEDS = [
    # whitespace
    " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "\r", "a", " a", "a ", "  a  ", "a\n", "\na", "a  b", "a   b    c     d",
    "a\tb\t\tc", "line one\nline two\n\nline four", "windows\r\nlines\r\n", "old mac\rlines\r", "trailing spaces   \n   leading",
    "\u00a0no-break\u00a0space", "thin\u2009space, ideographic\u3000space", "line\u2028separator\u2029paragraph",
    "vertical\x0btab form\x0cfeed", "next\x85line", "\ufeffwith a mark", "zero\u200bwidth\u200cjoin\u200ders", "soft\u00adhyphen",
    " " * 17, "word" + " " * 33 + "word", "\n" * 9, "\t" * 7 + "x",
    # stories and quotes
    "Once upon a time, there was a little girl who", "Once upon a time", "once upon a time", "ONCE UPON A TIME",
    '"Hello," said Tom.', "Lily's mom didn't go.", "“Curly,” she said, ‘inside’.", "«guillemets» „low“ ‚single‘",
    "Wait... what?! No!!! (yes) [maybe] {so}", "—em—dash – en-dash - hyphen ‐ real", "The end.\n\n\nOnce",
    "a.b.c. U.S.A. e.g. i.e.", "…and then…", "Mr. Fox & Mrs. Hen @ 50%", "it''s ``quoted´´",
    # digits
    "7", "1234567890", "3.14159", "1,000,000.50", "2024-02-29T23:59:59Z", "0x1F 0b101 1e-9 -0", "١٢٣ १२३ １２３", "½ ² ³ ⁴ Ⅷ ①",
    "192.168.0.1:8080", "+49 (0)30 123-456",
    # code
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) { a[i] |= 1 << i; }",
    "if x:\n\tprint('tab')\n\telse:\n\t\tpass", "SELECT * FROM t WHERE a <> 'b';", '<html><body class="x">&nbsp;</body></html>',
    '{"key": [1, 2.5, null, "v\\n"]}', "C:\\Users\\x\\n.txt", "/usr/bin/env python3 --flag=value",
    "https://example.org/a?b=c&d=%20#e", 'git commit -m "fix: it\'s"', "$\\frac{a}{b}$ \\\\ \\alpha",
    "#!/bin/sh\necho \"$HOME\" | sed 's/a/b/g'", "a->b::c<d>::e()", "__init__ _x_ CamelCase snake_case SCREAMING_CASE kebab-case",
    "```python\nx = 1\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./", "<0x0A>", "<0x41><0x42>",
    "<0xE2><0x82><0xAC>", "<", "<|", "|>", "<||>", "< s >",
    # scripts
    "你好，世界！", "日本語のテキスト、カタカナ。", "한국어 문장입니다.", "中英 mixed 文本 text 123 中",
    "مرحبا بالعالم", "العربية ١٢٣ mixed English", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "Привет, мир! Ёлка", "Γειά σου Κόσμε", "Tiếng Việt có dấu", "Ærøskøbing Straße naïve café",
    "İstanbul ıI iİ", "Здравствуйте, Lily", "ქართული", "አማርኛ", "ༀམཎིཔདྨེཧཱུྃ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙", "𓀀𓂀 𒀀",
    # combining marks and case
    "e\u0301 vs é", "n\u0303 o\u0308 Å A\u030a", "Z\u0351\u036b\u0343a\u0322\u0489l\u0300\u0301g\u0327o\u0337", "\u0301alone",
    "ﬁ ﬂ ﬀ ligatures", "ǅ ß ẞ ſ", "\u202eright to left\u202c", "\u1100\u1161\u11a8 jamo",
    # emoji
    "😀", "I ❤️ you 😍😍😍", "👨‍👩‍👧‍👦 family", "👍🏽👍🏿", "🇩🇪🇯🇵🇺🇸", "🏳️‍🌈 🏴‍☠️", "1️⃣2️⃣#️⃣", "smile:) 🙂🙃 ;-)", "☃️☀︎☂", "🧑🏻‍🚀🚀", "a😀b😀c",
    "\u200d\ufe0f\u20e3",
    # odd code points
    "\ufffd replacement", "\ue000 private \U0010fffd", "\ufffe \uffff", "\x01\x02\x1b[31mred\x1b[0m\x7f", "block \u2585 and \u2588",
    "⁇ unknown ⁇", "\u0080\u009f", "\U000e0001\U000e0041",
    # long and repetitive
    "a" * 100, "ab" * 64, "aa a aaa aaaa aaaaa " * 5, "the the the the " * 8, "." * 50, "-" * 80, "=" * 33 + "\n" + "=" * 33,
    "ha" * 21 + "!", "abcabcabc" * 9, "zZ" * 30, "no_spaces_at_all_" * 12, "Supercalifragilisticexpialidocious",
    "Donaudampfschifffahrtsgesellschaftskapitän", "aaab" * 25 + "aaa", "x" * 16 + "y" * 17, "\u00e9" * 40, "😀" * 30, "中" * 40,
]  # fmt: skip


def awkward_texts(count: int = 300, seed: int = 7) -> list[str]:
    """`count` different texts: the hand-written ones, one line of 10,000 characters, then joins of two to four of them."""
    rng = random.Random(seed)
    words = [text for text in _SEEDS if 0 < len(text) < 60]
    long_line = " ".join(rng.choice(words).replace("\n", " ").replace("\r", " ") for _ in range(2000))[:10_000]
    found = dict.fromkeys([*_SEEDS, long_line])
    while len(found) < count:
        glue = rng.choice(("", " ", "  ", "\n", "\t", ". "))
        found[glue.join(rng.choices(_SEEDS, k=rng.randint(2, 4)))] = None
    return list(found)[:count]


AWKWARD_TEXTS: list[str] = awkward_texts()
"""300 texts on which tokenizers go wrong. None holds a control piece's spelling, U+2581, NUL or a lone surrogate."""
LOOKALIKES = ["<s>", "</s>", "<unk>", "<pad>", IM_START, IM_END, "<0x0A>", "<0x41>", "<|endoftext|>"]
texts = st.lists(
    st.one_of(st.text(), st.sampled_from([*LOOKALIKES, " ", "  ", "\n", "\0", "Lily", " the", "\U0001f600"])), max_size=12
).map("".join)


# --- real text, and tokenizers ----------------------------------------------------------------------------------------------------------


@functools.cache
def story_tokenizer() -> Tokenizer:
    return train_tokenizer(made_stories(400), 600, threads=1)


@functools.cache
def repetitive_tokenizer() -> Tokenizer:
    """Pieces such as aa, aaa, aab, aabaa: many ways to cut one text."""
    return train_tokenizer(["aabaa aab aaab" * 3, "aaaaaa", "baab  abba   aa    b"] * 20, 290, threads=1)


def real_stories(name: str) -> list[str]:
    folder = os.environ.get("POSITRON_TEST_TEXT")
    if not folder:
        pytest.skip("POSITRON_TEST_TEXT is not set: no real text to test with")
    return (Path(folder) / name).read_text(encoding="utf-8").split("<|endoftext|>")


def documents_of(path: Path) -> list[str]:
    """The stories of a text file, as preparation reads them."""
    return list(read_documents(path, stats=ReadStats()))
