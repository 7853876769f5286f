"""Whether training still computes the same bytes: three short runs, each stopped and resumed once, and the hashes of what they saved.

python benchmarks/equal_bytes.py --save before.json --keep RUNS     train with this version, write the hashes, keep the unfinished runs
python benchmarks/equal_bytes.py --check before.json --keep RUNS    train with that version, compare; go on with the kept runs, compare

Run the first before the code is moved and the second after, on the same machine: hashes of another processor differ. It uses the command
line alone, so it does not depend on where the code lies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = ["--dataset_path", "text.txt", "--tokenizer_path", "spm.model"]
SHAPE = ["--config", "PicoGPT", "--vocab_size", "512", "--context_len", "128", *TEXT]
LOOP = ["--batch_tokens", "2048", "--max_steps", "24", "--warmup_steps", "4", "--eval_every", "8", "--save_every", "8", "--milestones", "0"]
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "2"]
TUNE = ["--sft_data", "rows.jsonl", "--epochs", "2", "--batch_size", "8", "--warmup_steps", "2", "--eval_every", "8", "--save_every", "8"]
RUNS = {
    "native": ["train", *SHAPE, *LOOP, *CPU, "--kernels", "native", "--compile", "off"],
    "pytorch": ["train", *SHAPE, *LOOP, *CPU, "--kernels", "pytorch", "--compile", "off", "--dropout", "0.1"],
    "tuned": ["sft", "--base_ckpt", "native/run", *TUNE, *CPU, "--kernels", "native"],
}
PAUSE = 11  # a step that nothing else falls on
CONVERSATIONS = 96


def positron(folder: Path, *words: str) -> None:
    """Run a command in `folder` and end this process with its message where it fails."""
    command = [str(Path(sys.executable).with_name("positron")), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")


def materials(folder: Path) -> None:
    """Write the text, the tokenizer and the conversations that all runs use."""
    positron(folder, "prepare", "--dataset", "storyworld", "--stories", "600", "--text_out", "text.txt")
    positron(folder, "prepare", "--dataset", "text.txt", "--vocab_size", "512", "--tokenizer_path", "spm.model")
    sample = Path(__file__).resolve().parent.parent / "tiny_instruct_sample.jsonl"
    with open(sample, encoding="utf-8") as lines:
        rows = [line for line, _ in zip(lines, range(CONVERSATIONS), strict=False)]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the weights and the training state of every saved step of a run."""
    found = sorted([*run.glob("step_*/model.safetensors"), *run.glob("step_*/training/state.safetensors")])
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def train(folder: Path, keep: Path | None) -> dict[str, dict[str, str]]:
    """Hashes of the finished runs; `keep` gets a copy of the folder with every run as it stood at its pause."""
    for name, words in RUNS.items():
        positron(folder, *words, "--out_dir", f"{name}/run", "--until_step", str(PAUSE))
        if keep is not None:
            shutil.copytree(folder / name, keep / name, symlinks=True)
        positron(folder, *words, "--out_dir", f"{name}/run")
    return {name: hashes(folder / name / "run") for name in RUNS}


def go_on(keep: Path) -> dict[str, dict[str, str]]:
    """Hashes of the kept runs after this version has gone on with copies of them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "kept"
        shutil.copytree(keep, folder, symlinks=True)
        for name, words in RUNS.items():
            positron(folder, words[0], "--out_dir", f"{name}/run")
        return {name: hashes(folder / name / "run") for name in RUNS}


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """The files that are not the same on both sides."""
    pairs = {(run, file) for side in (before, after) for run in side for file in side[run]}
    return sorted(f"{run}/{file}" for run, file in pairs if before.get(run, {}).get(file) != after.get(run, {}).get(file))


def main() -> None:
    """Save the hashes, or compare with saved ones; exit 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--keep", type=Path, help="folder of the runs that were stopped on the way")
    args = parser.parse_args()
    if (args.save is None) == (args.check is None):
        parser.error("one of --save FILE and --check FILE")
    keep = args.keep.resolve() if args.keep else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        materials(folder)
        if args.save is not None:
            found = train(folder, keep)
            if keep is not None:
                for name in ("text.txt", "spm.model", "rows.jsonl"):
                    shutil.copy(folder / name, keep / name)
            args.save.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{sum(map(len, found.values()))} files of {len(found)} runs hashed into {args.save}")
            return
        before = json.loads(args.check.read_text())
        sides = {"trained anew": train(folder, None)} | ({"kept runs gone on with": go_on(keep)} if keep is not None else {})
    wrong = {what: differences(before, after) for what, after in sides.items()}
    for what, files in wrong.items():
        total = sum(map(len, sides[what].values()))
        print(f"{what}: {total - len(files)} of {total} files equal" + "".join(f"\n  differs: {file}" for file in files))
    sys.exit(any(wrong.values()))


if __name__ == "__main__":
    main()
