"""A table of one run: steps, tokens, minutes and validation, and the bits per byte of its newest checkpoint on a text of your choice.

python benchmarks/run_table.py runs/x --text tinystories-valid.txt [--json out.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

from positron_mini.device import set_threads, usable_cores
from positron_mini.evaluate.bits import score_texts
from positron_mini.store.checkpoint import load_model
from positron_mini.store.find import find_checkpoint
from positron_mini.store.run_folder import RunFolder
from positron_mini.text.corpus.files import read_documents
from positron_mini.text.corpus.reading import ReadStats

VALIDATION = ("step", "tokens", "elapsed_s", "val_loss", "val_bpb")


def collect(run: RunFolder, text: Path) -> dict[str, Any]:
    """Everything the table shows."""
    record, metrics = run.read(), run.metrics()
    assert record is not None, run.path
    checkpoint = find_checkpoint(run.path)
    set_threads(None)
    score = score_texts(load_model(checkpoint), checkpoint.tokenizer, list(read_documents(text, stats=ReadStats())))
    speeds = sorted(row["tok_per_s"] for row in metrics)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{usable_cores()} cores, {platform.machine()}, {record.device['device']} {record.device['precision']}",
        "versions": record.versions,
        "config": {k: record.config[k] for k in ("config", "batch_tokens", "lr", "optimizer", "compile", "threads", "micro_batch", "seed")},
        "parameters": checkpoint.config.parameters,
        "step": checkpoint.step,
        "tokens": metrics[-1]["tokens"],
        "minutes": round(metrics[-1]["elapsed_s"] / 60, 2),
        "tok_per_s_median": speeds[len(speeds) // 2],
        "validations": [{k: row[k] for k in VALIDATION} for row in metrics if "val_bpb" in row],
        "text": text.name,
        "loss": round(score.loss, 4),
        "bits_per_byte": round(score.bits_per_byte, 4),
    }


def table(data: dict[str, Any]) -> str:
    """The same as Markdown."""
    config = data["config"]
    lines = [
        f"{data['date']}, {data['machine']}, torch {data['versions']['torch']}: {config['config']}, {data['parameters']:,} parameters, "
        f"{config['batch_tokens']:,} tokens a step, {config['optimizer']}, lr {config['lr']:g}, seed {config['seed']}",
        "",
        "| step | tokens | minutes | validation loss (nats per token) | bits per byte |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {v['step']:,} | {v['tokens'] / 1e6:.2f} M | {v['elapsed_s'] / 60:.1f} | {v['val_loss']:.3f} | {v['val_bpb']:.3f} |"
        for v in data["validations"]
    ]
    lines += [
        "",
        f"At the end on {data['text']}: **{data['bits_per_byte']:.3f} bits per byte**, {data['loss']:.3f} nats per token; "
        f"median speed {data['tok_per_s_median']:,.0f} tokens a second.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    data = collect(RunFolder(flags.run), flags.text)
    print(table(data))
    if flags.json:
        flags.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
