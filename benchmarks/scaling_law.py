"""Fits the law of `positron_mini/train/budget.py` to finished runs: bits per byte of held-out text by block weights and bytes read.

    python benchmarks/scaling_law.py --runs FOLDER [FOLDER ...] [--points docs/results/scaling-law.json] [--out FILE.json]

Every folder that holds a finished run gives a point: its weights, the bytes it read, the bytes of its text, and its last validation. With
`--points` those of a file are kept too. The fit minimises the squared error of the logarithm with a floor that is given, because few small
runs cannot tell a floor from a slow fall.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import paired
import torch
from paired import Row

from positron_mini import files
from positron_mini.store.run_folder import RunFolder
from positron_mini.train.law import Law, bytes_per_token, worth_of_text

FLOOR = 0.5  # near what far larger models reach: llama2.c's 110 M needs 0.76 nats per token of 32,000 pieces


def point(folder: Path) -> Row | None:
    """What a finished run says about the law; None for a folder without one."""
    run = RunFolder(folder)
    record = run.read()
    rows = [row for row in run.metrics() if "val_bpb" in row]
    report = next(iter(folder.parent.parent.glob("data/cache/*/report.json")), None)
    shape = None if record is None else record.own_shape
    if record is None or shape is None or not rows:
        return None
    unique = float(record.config.get("text_bytes") or (files.read_json(report).get("train_bytes", 0) if report else 0))
    return {
        "run": folder.name,
        "config": record.config["config"],
        "vocab_size": shape.vocab_size,
        "block_parameters": shape.block_parameters,
        "tokens": rows[-1]["tokens"],
        "text_bytes": rows[-1]["tokens"] * bytes_per_token(shape.vocab_size),
        "unique_bytes": unique or 12.6e6,
        "val_bpb": rows[-1]["val_bpb"],
    }


def fit(points: list[Row], floor: float) -> Law:
    """The law with this floor that is nearest to the points, by LBFGS from several beginnings."""
    weights = torch.tensor([p["block_parameters"] for p in points], dtype=torch.float64).log()
    text = torch.tensor([worth_of_text(p["text_bytes"], p["unique_bytes"]) for p in points], dtype=torch.float64).log()
    wanted = torch.tensor([p["val_bpb"] for p in points], dtype=torch.float64).log()
    best, least = None, math.inf
    for alpha in (0.3, 0.6):
        for beta in (0.3, 0.5):
            values = torch.tensor([10.0, alpha, 12.5, beta], dtype=torch.float64, requires_grad=True)
            search = torch.optim.LBFGS([values], max_iter=500, line_search_fn="strong_wolfe")

            def error(values: torch.Tensor = values) -> torch.Tensor:
                size, a, data, b = values
                found = floor + (a * (size - weights)).exp() + (b * (data - text)).exp()
                return (found.log() - wanted).square().mean() + 1e-3 * ((a - 0.4).square() + (b - 0.4).square())

            def closure(values: torch.Tensor = values, search: torch.optim.LBFGS = search) -> torch.Tensor:
                search.zero_grad()
                loss = error(values)
                loss.backward()
                return loss

            search.step(closure)
            if float(error(values)) < least:
                least, best = float(error(values)), values.detach()
    assert best is not None
    size, a, data, b = (float(v) for v in best)
    return Law(floor, math.exp(size), a, math.exp(data), b)


def main() -> None:
    """Print the points beside the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="run folders")
    parser.add_argument("--points", type=Path, help="points of an earlier call, kept")
    parser.add_argument("--floor", type=float, default=FLOOR)
    parser.add_argument("--out", type=Path, default=Path("results/scaling-law.json"), help="where points and law go")
    flags = parser.parse_args()
    points = list(json.loads(flags.points.read_text())["points"]) if flags.points else []
    points += [found for found in map(point, flags.runs) if found is not None]
    law = fit(points, flags.floor)
    rows = []
    for p in points:
        foretold = law.bits_per_byte(p["block_parameters"], worth_of_text(p["text_bytes"], p["unique_bytes"]))
        sizes = (f"{p['block_parameters'] / 1e6:.2f} M", f"{p['tokens'] / 1e6:.2f} M")
        rows.append((p["run"], *sizes, f"{p['val_bpb']:.3f}", f"{foretold:.3f}"))
    print(paired.markdown(("run", "block weights", "tokens", "bits per byte", "the law"), rows))
    print(f"\n{law}")
    paired.write({**paired.circumstances(1), "points": points, "law": law.__dict__}, flags.out)


if __name__ == "__main__":
    sys.exit(main())
