"""How many stories of a model the story world's checker finds consistent, and the first five of them, unpicked.

A story that begins with a wish must fulfil it.

python benchmarks/storyworld_consistency.py --ckpt runs/x [--samples 200] [--temperature 0.7] [--min_p 0] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from positron_mini.config import SampleConfig
from positron_mini.evaluate.suites import tally
from positron_mini.generate import generate
from positron_mini.store.checkpoint import load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.storyworld import check_document, check_story, read_request
from positron_mini.text.tokenizer import BOS

BATCH = 20  # stories drawn at once


def sample(ckpt: str, samples: int, temperature: float, min_p: float) -> list[tuple[str, bool]]:
    """Stories that begin with nothing but bos, and whether each came to its end."""
    checkpoint = find_checkpoint(ckpt)
    model = load_model(checkpoint)
    stories = []
    for first in range(0, samples, BATCH):
        settings = SampleConfig(max_tokens=480, temperature=temperature, min_p=min_p, seed=first)
        drawn = generate(model, checkpoint.tokenizer, [BOS], settings, n=min(BATCH, samples - first), end_ids=checkpoint.end_ids)
        stories += [(story.text, story.finish_reason == "stop") for story in drawn]
    return stories


def story_of(text: str) -> str:
    """The story without the wish that may stand before it."""
    wish, _, rest = text.strip().partition("\n")
    return text if read_request(wish) is None else rest


def main() -> None:
    """Print the figures and five stories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--min_p", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    stories = sample(flags.ckpt, flags.samples, flags.temperature, flags.min_p)
    verdicts = [check_document(text) for text, _ in stories]
    result: dict[str, Any] = tally(verdict.consistent for verdict in verdicts)
    result["stories_alone"] = sum(check_story(story_of(text)).consistent for text, _ in stories) / len(stories)
    result["ended"] = sum(ended for _, ended in stories) / len(stories)
    result["sentences_parsed"] = sum(verdict.parsed_share for verdict in verdicts) / len(verdicts)
    result["distinct"] = len({text for text, _ in stories})
    reasons = Counter(reason for verdict in verdicts if not verdict.consistent for reason in verdict.reasons[:1])
    print(f"consistent: {result['accuracy']:.1%} of {flags.samples} (95 % interval {result['low']:.1%} to {result['high']:.1%}), ", end="")
    print(f"{result['stories_alone']:.1%} leaving wishes aside, ", end="")
    print(f"temperature {flags.temperature}, min_p {flags.min_p:g}; {result['ended']:.1%} came to their end, ", end="")
    print(f"{result['distinct']} are different; ", end="")
    print(f"{result['sentences_parsed']:.1%} of the sentences were understood by the checker")
    for reason, count in reasons.most_common(8):
        print(f"  {count:>3} x {reason}")
    for text, _ in stories[:5]:
        print(f"\n---\n{text}")
    if flags.json:
        flags.json.write_text(json.dumps({**result, "reasons": dict(reasons)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
