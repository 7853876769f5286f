"""How fast a text is prepared: megabytes a second of reading and cleaning, and of encoding, each in a process of its own.

python benchmarks/preparation_speed.py [--text FILE] [--config TinyGPT] [--rounds 3] [--threads 1,2] [--out FILE.json]

Without --text the text is made: stories of the story world, which has words for 2,048 pieces only.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import paired
from paired import Row, bench, median, say


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file or folder (default: made stories)")
    parser.add_argument("--config", default="TinyGPT", help="the preset whose vocabulary is learned (default TinyGPT)")
    parser.add_argument("--rounds", type=int, default=3, help="measured turns of each (default 3)")
    parser.add_argument("--threads", default=f"1,{os.cpu_count() or 1}", help="numbers of threads to compare (default 1 and all)")
    parser.add_argument("--out", type=Path, default=Path("results/preparation-speed.json"), help="where the figures go")
    flags = parser.parse_args()
    counts = sorted({int(count) for count in flags.threads.split(",")})
    rows: dict[int, list[Row]] = {count: [] for count in counts}
    words = ("--text", str(flags.text)) if flags.text else ()
    for number in range(flags.rounds):
        for count in counts:
            rows[count].append(bench("prepare", "--config", flags.config, "--threads", str(count), *words))
            say(f"round {number + 1}/{flags.rounds}  {count} threads  {rows[count][-1]['mb_per_s']:.2f} MB/s")
    head = ("threads", "MB", "scan MB/s", "encode MB/s", "both MB/s", "tokens/s", "tokenizer s", "peak memory")
    lines = [
        (
            count, f"{found[0]['bytes'] / 1e6:.1f}", f"{median(found, 'scan_mb_per_s'):.2f}", f"{median(found, 'encode_mb_per_s'):.2f}",
            f"{median(found, 'mb_per_s'):.2f}", f"{median(found):,.0f}", f"{median(found, 'tokenizer_s'):.1f}",
            f"{median(found, 'peak_rss_bytes') / 1e9:.2f} GB",
        )
        for count, found in rows.items()
    ]  # fmt: skip
    print(paired.markdown(head, lines))
    text = flags.text.name if flags.text else "story world"
    record = {
        **paired.circumstances(max(counts), ("torch", "sentencepiece")),
        "text": text,
        "rounds": {str(count): found for count, found in rows.items()},
    }
    paired.write(record, flags.out)


if __name__ == "__main__":
    sys.exit(main())
