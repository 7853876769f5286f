"""Several processes against one: are the losses the same, how fast is it, and how many bytes go between them?

python benchmarks/processes.py equal --text FILE [--steps 50]                 losses of 1, 2 and 4 processes, in float64 and fp32
python benchmarks/processes.py speed --text FILE [--batch_tokens 8192]        2 processes x 1 thread against 1 x 2 threads
python benchmarks/processes.py bytes --text FILE [--config TinyGPT]           what 1, 2 and 4 processes send over loopback in a step

Processes are started by torchrun, as `positron train --nproc` does. Bytes are those that the kernel counts on the loopback device: run it
where nothing else talks to itself, for example in a network namespace of its own:
unshare --net --map-root-user sh -c 'ip link set lo up; python benchmarks/processes.py bytes --text FILE'
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import paired
from paired import Row, say

ROOT = Path(__file__).resolve().parent.parent
DEVICES = Path("/proc/self/net/dev")  # of this process's network namespace, which /sys may not show


# --- a process of the group ---------------------------------------------------------------------------------------------------------------


def work(job: Row) -> None:
    """Train as one process of a group; the first writes what it measured to `job["answer"]`."""
    import torch

    from positron_mini import distributed
    from positron_mini.config import TrainConfig, model_config
    from positron_mini.fast.losses import loss_function
    from positron_mini.model import GPT
    from positron_mini.optim import build_optimizer, make_schedule
    from positron_mini.text.prepare import prepare_corpus
    from positron_mini.train.pretrain import TokenBatches
    from positron_mini.trainer import LoopConfig, StopFlag

    torch.set_num_threads(job["threads"])
    if job["dtype"] == "float64":  # the model computes norms and logits in fp32, whatever its weights are
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    processes = distributed.join("cpu")
    with processes.in_turn():
        prepared = prepare_corpus(
            Path(job["text"]), tokenizer_path=Path(job["tokenizer"]), vocab_size=None, cache_dir=Path(job["cache"]), say=say
        )
    shape = model_config(TrainConfig(config=job["config"]), prepared.tokenizer.vocab_size)
    rows = max(1, round(job["batch_tokens"] / shape.context_len))
    model = GPT(shape).init_weights(0).to(torch.get_default_dtype())
    optimizer = build_optimizer(model, "muon", lr=4e-3, muon_lr=None, weight_decay=0.1)
    micro = max(1, 2_048 // shape.context_len)
    loop = LoopConfig(4e-3, make_schedule(5, None, job["horizon"]), micro, 1.0, 0.0, 0, "cpu", "fp32")
    loss = loss_function(model, "cpu", compiled=False)
    trainer = processes.trainer(model, optimizer, TokenBatches(prepared.train.ids, 0, rows, shape.context_len), loop, loss=loss)
    losses, times, sent = [], [], []
    mark, counter = time.perf_counter(), _counter()
    for report in trainer.run(job["steps"], StopFlag()):
        losses.append(report.loss)
        processes.sums([0.0])  # all have done the step when the bytes are read
        now, bytes_now = time.perf_counter(), _counter()
        times.append(now - mark)
        sent.append(bytes_now - counter)
        mark, counter = now, bytes_now
    if processes.is_first:
        answer = {
            "losses": losses, "step_s": statistics.median(times[1:]), "loopback_bytes": statistics.median(sent[1:]),
            "exchanged_bytes": getattr(processes, "exchanged_bytes", 0) / len(losses), "parameters": shape.parameters,
            "tokens": rows * shape.context_len,
        }  # fmt: skip
        Path(job["answer"]).write_text(json.dumps(answer))
    processes.leave()


def _counter() -> int:
    """Bytes sent over loopback so far, 0 where the system does not count as Linux does."""
    lines = DEVICES.read_text().splitlines() if DEVICES.is_file() else []
    return next((int(line.split()[9]) for line in lines if line.split()[0] == "lo:"), 0)


def group(count: int, job: Row) -> Row:
    """What `count` processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(Path(__file__).resolve()), "--worker", json.dumps({**job, "answer": f"{folder}/answer"})]
        start = ["--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", str(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *start, *words], check=True, env=environment)
        answer: Row = json.loads(Path(folder, "answer").read_text())
        return answer


# --- questions ----------------------------------------------------------------------------------------------------------------------------


def equal(job: Row) -> tuple[list[str], Row]:
    """Lines and figures: the losses of 1, 2 and 4 processes."""
    found: dict[str, dict[int, list[float]]] = {}
    lines = []
    for dtype in ("float64", "float32"):
        rows = found[dtype] = {count: group(count, {**job, "dtype": dtype, "threads": 1})["losses"] for count in (1, 2, 4)}
        for count in (2, 4):
            off = [abs(a - b) for a, b in zip(rows[1], rows[count], strict=True)]
            lines.append(
                f"{dtype}, {count} processes against 1, {len(off)} steps from {rows[1][0]:.3f} to {rows[1][-1]:.3f}: first step off by "
                f"{off[0]:.1e}, most {max(off):.1e}, last {off[-1]:.1e} ({off[-1] / rows[1][-1]:.1e} of it)"
            )
    return lines, {"losses": found}


def speed(job: Row, rounds: int) -> tuple[list[str], Row]:
    """Lines and figures: tokens a second of one process with two threads and of two with one, in turns."""
    rows: dict[str, list[Row]] = {"1 process x 2 threads": [], "2 processes x 1 thread": []}
    for number in range(rounds):
        for name in list(rows) if number % 2 == 0 else list(rows)[::-1]:
            answer = group(int(name[0]), {**job, "dtype": "float32", "threads": 2 // int(name[0])})
            rows[name].append({"tok_per_s": answer["tokens"] / answer["step_s"]})
            say(f"round {number + 1}/{rounds}  {name}  {rows[name][-1]['tok_per_s']:,.0f} tokens/s")
    one, two = (paired.median(found) for found in rows.values())
    table = [(name, f"{paired.median(found):,.0f}", paired.spread(found)) for name, found in rows.items()]
    lines = [paired.markdown(("", "tokens/s", "least - most"), table), f"two processes reach {paired.verdict(two / one, 0.85)} of one"]
    return lines, {"rounds": rows, "ratio": two / one}


def count_bytes(job: Row) -> tuple[list[str], Row]:
    """Lines and figures: bytes over loopback in a step, beside those of a ring: 2 (N - 1) times the gradients."""
    rows, table = {}, []
    for count in (1, 2, 4):
        answer = rows[count] = group(count, {**job, "dtype": "float32", "threads": 1})
        gradients = 4 * answer["parameters"]
        ring = 2 * (count - 1) * gradients
        table.append(
            (
                count, f"{gradients / 1e6:.1f}", f"{answer['exchanged_bytes'] / 1e6:.1f}", f"{answer['loopback_bytes'] / 1e6:.1f}",
                f"{ring / 1e6:.1f}", f"{answer['loopback_bytes'] / ring:.3f}" if ring else "-",
            )
        )  # fmt: skip
    head = ("processes", "gradients MB", "given to be added up MB", "on the wire MB", "2 (N - 1) x gradients MB", "wire / formula")
    return [paired.markdown(head, table)], {"rows": {str(count): {**row, "losses": None} for count, row in rows.items()}}


def main() -> None:
    """Answer one of the three questions."""
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "speed", "bytes"))
    parser.add_argument("--text", type=Path, required=True, help="real stories")
    parser.add_argument("--config", help="preset (default: equal PicoGPT, else TinyGPT)")
    parser.add_argument("--batch_tokens", type=int, default=8_192)
    parser.add_argument("--steps", type=int, help="steps of each run (default: equal 50, speed 6, bytes 4)")
    parser.add_argument("--rounds", type=int, default=3, help="speed: measured turns of each")
    parser.add_argument("--out", type=Path, help="where the figures go (default results/processes-WHAT.json)")
    flags = parser.parse_args()
    from positron_mini.config import preset
    from positron_mini.text.prepare import prepare_corpus

    config = flags.config or ("PicoGPT" if flags.what == "equal" else "TinyGPT")
    steps = flags.steps or {"equal": 50, "speed": 6, "bytes": 4}[flags.what]
    with tempfile.TemporaryDirectory(prefix="positron-processes-") as folder:
        job: dict[str, Any] = {
            "text": str(flags.text.resolve()), "tokenizer": f"{folder}/spm.model", "cache": f"{folder}/cache", "config": config,
            "batch_tokens": flags.batch_tokens, "steps": steps, "horizon": steps if flags.what == "equal" else None,
        }  # fmt: skip
        prepare_corpus(
            flags.text, tokenizer_path=Path(job["tokenizer"]), vocab_size=preset(config).vocab_size, cache_dir=Path(job["cache"]), say=say
        )
        lines, figures = {"equal": equal, "speed": lambda job: speed(job, flags.rounds), "bytes": count_bytes}[flags.what](job)
    print("\n".join(lines))
    where = {**paired.circumstances(2), "config": config, "batch_tokens": flags.batch_tokens, "steps": steps}
    paired.write({**where, **figures}, flags.out or Path(f"results/processes-{flags.what}.json"))


if __name__ == "__main__":
    main()
