"""How long whole processes take: help, one token, and a second bootstrap from its start to its first training step.

python benchmarks/startup.py [--config TinyGPT] [--repetitions 5] [--out FILE.json]

The model has random weights and the preset's vocabulary. The first bootstrap start, which prepares a small text, is not counted; the
second one finds text, tokenizer and a saved step, as it does whenever someone goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import paired
from paired import say

from positron_mini.doctor.bench import bench_startup

TARGETS = {"help_s": 0.4, "generate_s": 2.5, "second_start_s": 15.0}
NAMES = {
    "help_s": "positron --help",
    "generate_s": "positron generate --max_tokens 1",
    "second_start_s": "second bootstrap start, to the first step",
}


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="TinyGPT", help="preset (default TinyGPT)")
    parser.add_argument("--repetitions", type=int, default=5, help="starts of each (default 5)")
    parser.add_argument("--out", type=Path, default=Path("results/startup.json"), help="where the figures go")
    flags = parser.parse_args()
    record = bench_startup(flags.config, repetitions=flags.repetitions, say=say)
    lines = [
        (NAMES[what], f"{record[what]:.2f}", f"{target:g}", "met" if record[what] <= target else "MISSED")
        for what, target in TARGETS.items()
    ]
    print(paired.markdown(("process", "seconds", "target", ""), lines))
    print(f"\nfirst bootstrap start of a text of 300 stories: {record['first_start_s']:.1f} s")
    paired.write({**record, **paired.circumstances(os.cpu_count() or 1)}, flags.out)


if __name__ == "__main__":
    sys.exit(main())
