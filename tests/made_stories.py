"""Story-like English made from a seed, for tests that need text to train on."""

from __future__ import annotations

import random


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
