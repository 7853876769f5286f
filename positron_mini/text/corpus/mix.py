"""A mix of several texts by shares of bytes: `a:0.7,b:0.3`. The texts and the seed determine the stories and their order.

The mix is as large as possible without a repeated story: the text that is smallest for its share is used whole, of others a seeded sample.
Stories of all texts alternate from the first to the last, so that any beginning of the mix has about the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from positron_mini.errors import DataError, UsageError
from positron_mini.text.corpus.files import ReadStats, read_documents
from positron_mini.text.corpus.split import KeyBlock, KeyTable, sample_of


@dataclass(frozen=True)
class Ingredient:
    """One text of a mix: a boolean for each story of the file, whether it is in the mix, and the bytes of those that are."""

    path: Path
    chosen: NDArray[np.bool_]
    chosen_bytes: int


def parse_mix(spec: str) -> list[tuple[str, float]] | None:
    """Sources and shares (which sum to 1) in `spec`; None for a single source. Errors: UsageError."""
    if "," not in spec or Path(spec).expanduser().exists():
        return None
    named = [part.strip().rpartition(":") for part in spec.split(",")]
    try:
        shares = [float(share) for _, _, share in named]
    except ValueError:
        shares = [math.nan]
    if not all(name for name, _, _ in named) or not all(math.isfinite(share) and share > 0 for share in shares):
        raise UsageError(
            f"--dataset {spec!r}: every text of a mix needs a share above 0 after its name", "--dataset tinystories:0.7,storyworld:0.3"
        )
    return [(name, share / sum(shares)) for (name, _, _), share in zip(named, shares, strict=True)]


def choose(paths: Sequence[Path], shares: Sequence[float], seed: int) -> list[Ingredient]:
    """Choose the part of each text that goes into the mix. Errors: DataError for a text without a story, and those of reading."""
    tables = []
    for path in paths:
        block = KeyBlock()
        for text in read_documents(path, stats=ReadStats()):
            block.add(text)
        tables.append(KeyTable([block.pack()]))
        if not len(tables[-1]):
            raise DataError(f"{path}: no story to mix in", "leave it out of --dataset")
    sizes = [int(table.sizes.sum(dtype=np.int64)) for table in tables]
    whole = min(size / share for size, share in zip(sizes, shares, strict=True))
    chosen = [
        # rounded up, or a text used whole might lose a story
        sample_of(np.ones(len(table), bool), table, seed=seed, max_bytes=math.ceil(share * whole))
        for table, share in zip(tables, shares, strict=True)
    ]
    return [
        Ingredient(path, marks, int(table.sizes[marks].sum(dtype=np.int64)))
        for path, table, marks in zip(paths, tables, chosen, strict=True)
    ]


def mixed(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    """Stories of a mix; the next one is always from the text that is furthest behind its share."""
    texts = [_chosen(ingredient) for ingredient in ingredients]
    taken = [0] * len(texts)
    left = [int(ingredient.chosen.sum()) for ingredient in ingredients]
    while any(left):
        behind = min((n for n, count in enumerate(left) if count), key=lambda n: (taken[n] / ingredients[n].chosen_bytes, n))
        text = next(texts[behind])
        taken[behind] += len(text.encode("utf-8"))
        left[behind] -= 1
        yield text


def _chosen(ingredient: Ingredient) -> Iterator[str]:
    try:
        for text, is_chosen in zip(read_documents(ingredient.path, stats=ReadStats()), ingredient.chosen, strict=True):
            if is_chosen:
                yield text
    except ValueError as error:  # zip
        raise DataError(f"{ingredient.path}: changed while it was being mixed", "start the same command again") from error
