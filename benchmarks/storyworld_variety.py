"""How varied the story world is, beside real stories: prints a table and writes it as JSON.

    python benchmarks/storyworld_variety.py --stories 100000 --reference data/tinystories.txt \\
        --json docs/results/storyworld.json --out docs/results/storyworld.md

The reference is a text with stories separated by <|endoftext|>; without one, only the story world is measured.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import re
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.faulty_stories import CORRUPTIONS, corrupted  # noqa: E402
from positron_mini import files  # noqa: E402
from positron_mini.storyworld import check_story, entropy_bits_per_byte, stories  # noqa: E402

WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
GZIP_BYTES = 4_000_000
WINDOW_WORDS = 1_000_000


def words_of(text: str) -> list[str]:
    """The lower-case words of a text."""
    return WORD.findall(text.lower())


def measure(texts: Iterable[str]) -> dict[str, Any]:
    """Word types, distinct 4-grams and gzip ratio of a first million words, lengths of all stories."""
    types: set[str] = set()
    grams: set[tuple[str, ...]] = set()
    head: list[str] = []
    lengths: list[int] = []
    total = size = 0
    for text in texts:
        lengths.append(len(text.split()))
        if total < WINDOW_WORDS:
            words = words_of(text)[: WINDOW_WORDS - total]
            total += len(words)
            types.update(words)
            grams.update(zip(words, words[1:], words[2:], words[3:], strict=False))
        if size < GZIP_BYTES:
            head.append(text)
            size += len(text.encode()) + 1
    packed = "\n".join(head).encode()[:GZIP_BYTES]
    lengths.sort()
    return {
        "stories": len(lengths),
        "shortest_words": lengths[0],
        "median_words": lengths[len(lengths) // 2],
        "longest_words": lengths[-1],
        "words_measured": total,
        "word_types": len(types),
        "distinct_4grams": len(grams),
        "gzip_ratio": round(len(packed) / len(gzip.compress(packed, 9, mtime=0)), 3),
    }


def grams_of(text: str, width: int = 8) -> set[int]:
    """The 8-grams of a text as 64-bit numbers, the same in every process."""
    words = [crc32(word.encode()) for word in words_of(text)]
    grams = set()
    for start in range(len(words) - width + 1):
        number = 0
        for word in words[start : start + width]:
            number = (number * 0x100000001B3 + word) & 0xFFFFFFFFFFFFFFFF
        grams.add(number)
    return grams


def repeated_grams(texts: list[str]) -> bytearray:
    """A table of 2 ** 27 cells in which a cell is 2 when its 8-grams stand in two stories or more (chance hits only add candidates)."""
    seen = bytearray(1 << 27)
    for text in texts:
        for cell in {gram >> 37 for gram in grams_of(text)}:
            if seen[cell] < 2:
                seen[cell] += 1
    return seen


def near_duplicates(texts: list[str], share: float = 0.5) -> dict[str, float]:
    """Exact duplicates, and the share of stories that have half or more of their 8-grams in common with one other story.

    Only a story half of whose 8-grams stand anywhere else can be one; `half_found_elsewhere` is the share of such stories.
    """
    seen = repeated_grams(texts)
    suspects: dict[int, set[int]] = {}
    for number, text in enumerate(texts):
        grams = grams_of(text)
        if sum(seen[gram >> 37] > 1 for gram in grams) >= share * len(grams):
            suspects[number] = grams
    posting: dict[int, array[int]] = {gram: array("i") for grams in suspects.values() for gram in grams}
    for number, text in enumerate(texts):
        for gram in grams_of(text):
            if gram in posting:
                posting[gram].append(number)
    tops = [largest_overlap(number, grams, posting) for number, grams in suspects.items()]
    return {
        "exact_duplicates": len(texts) - len(set(texts)),
        "near_duplicate_share": sum(top >= share for top in tops) / len(texts),
        "half_found_elsewhere": len(suspects) / len(texts),
    }


def largest_overlap(number: int, grams: set[int], posting: dict[int, array[int]]) -> float:
    """The largest share of a story's 8-grams that one other story has too."""
    shared: Counter[int] = Counter()
    for gram in grams:
        shared.update(posting[gram])
    del shared[number]
    return max(shared.values(), default=0) / len(grams)


def rows(ours: dict[str, Any], reference: dict[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """The table: measure, story world, reference, target."""
    real = reference or {}
    half = f">= {real['distinct_4grams'] // 2:,}" if real else ">= half of real"
    ratio = f"<= {1.6 * real['gzip_ratio']:.2f}" if real else "<= 1.6 x real"
    targets = {
        "shortest_words": ">= 80",
        "longest_words": "<= 300",
        "word_types": ">= 1,500",
        "distinct_4grams": half,
        "gzip_ratio": ratio,
        "exact_duplicates": "0",
        "near_duplicate_share": "< 0.01",
        "stories_per_s": ">= 500",
    }
    return [(key, _number(ours[key]), _number(real.get(key, "")), targets.get(key, "")) for key in ours]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def read_stories(path: Path) -> list[str]:
    """The stories of a text file."""
    return [text.strip() for text in path.read_text(encoding="utf-8").split("<|endoftext|>") if text.strip()]


def checked(seed: int, count: int) -> dict[str, float]:
    """Shares of stories that the checker finds inconsistent: those of the world as they are, and with one fault of each sort."""
    told = list(islice(stories(seed), count))
    shares = {"as written": sum(not check_story(story.text).consistent for story in told) / count}
    for name in CORRUPTIONS:
        wrong = [text for story in told if (text := corrupted(story, name)) is not None]
        shares[name] = round(sum(not check_story(text).consistent for text in wrong) / len(wrong), 4)
    return shares


def report(record: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """The page for docs/results: variety, what the checker sees, the date and the machine."""
    lines = ["# The story world, measured", "", "Variety, beside TinyStories. Words and 4-grams are counted in the first million words,"]
    lines += ["gzip in 4 MB; duplicates are searched among all generated stories.", "", "```"]
    lines += [f"{row[0]:<24}{row[1]:>14}{row[2]:>14}{row[3]:>14}" for row in rows(record["storyworld"], reference)]
    lines += ["```", "", "`near_duplicate_share`: stories that share half or more of their 8-grams with one other story."]
    lines += ["`half_found_elsewhere`: stories half of whose 8-grams occur in any of the others.", ""]
    lines += [f"Entropy of the choices that can be recovered from the text: {record['entropy_bits_per_byte']:.4f} bits per byte.", ""]
    lines += ["Stories that the checker finds inconsistent, as written and with one fault put in:", "", "```"]
    lines += [f"{name:<24}{share:>9.1%}" for name, share in record["inconsistent"].items()]
    return "\n".join([*lines, "```", "", f"{record['date']}, {record['machine']}; seed {record['seed']}.", ""])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=20_000, help="stories to generate (default 20000)")
    parser.add_argument("--checked", type=int, default=1_000, help="stories to put through the checker (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the stories (default 0)")
    parser.add_argument("--reference", type=Path, help="real stories separated by <|endoftext|>")
    parser.add_argument("--machine", default="2 CPU cores, AVX2", help="what the page says about the machine")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date of the measurement (default today)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--out", type=Path, help="write the page here")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write what was asked for."""
    args = arguments()
    began = time.perf_counter()
    texts = [story.text for story in islice(stories(args.seed), args.stories)]
    rate = args.stories / (time.perf_counter() - began)
    ours = measure(texts) | near_duplicates(texts) | {"stories_per_s": round(rate)}
    reference = measure(read_stories(args.reference)) if args.reference else None
    record = {
        "date": args.date,
        "machine": args.machine,
        "seed": args.seed,
        "storyworld": ours,
        "reference": reference,
        "entropy_bits_per_byte": round(entropy_bits_per_byte(args.seed, 1_000), 4),
        "inconsistent": checked(args.seed, args.checked),
    }
    page = report(record, reference)
    print(page)
    if args.json:
        files.write_json(args.json, record)
    if args.out:
        files.write_text(args.out, page)


if __name__ == "__main__":
    main()
