"""Peak memory of one training step at several batch sizes: it must not grow with --batch_tokens.

python benchmarks/memory.py --text FILE [--config TinyGPT] [--batch_tokens 4096,98304]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def peak_gb(text: Path, config: str, batch_tokens: int, folder: Path) -> float:
    """Gigabytes of main memory that a whole `positron train` of one step held at the most, by its own last lines."""
    command = [sys.executable, "-m", "positron_mini", "train", "--config", config, "--dataset_path", str(text.resolve())]
    command += ["--batch_tokens", str(batch_tokens), "--until_step", "1", "--out_dir", f"runs/{batch_tokens}", "--milestones", "none"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = re.search(r"\(([0-9.]+) GB of memory", done.stderr)
    assert found, done.stderr
    return float(found.group(1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--config", default="TinyGPT")
    parser.add_argument("--batch_tokens", default="4096,98304")
    flags = parser.parse_args()
    print("| preset | tokens a step | peak memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, flags.batch_tokens.split(",")):
            print(f"| {flags.config} | {size:,} | {peak_gb(flags.text, flags.config, size, Path(folder)):.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
