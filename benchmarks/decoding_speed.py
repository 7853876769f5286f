"""Decoding speed beside transformers and llama.cpp on the same weights: tokens a second, one stream and eight, f32 and 8 bits.

    python benchmarks/decoding_speed.py [--ckpt runs/NAME/latest] [--config TinyGPT] [--tokens 256] [--rounds 5]
           [--threads N] [--out FILE.json]

Without --ckpt the weights are random, which changes no speed. All write the same number of tokens after a prompt of 16, at temperature 0
unless told; what counts is the time from the first token to the last. transformers runs `generate` as it is; llama.cpp is the server of
xllamacpp with its own settings, and its figure is its own (`predicted_per_second`; for several streams their sum, which flatters it a
little). Each is a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paired
from paired import Row, median, spread, verdict

PROMPT_TOKENS = 16
STREAMS = (1, 8)


def prompt_ids(vocab_size: int) -> list[int]:
    """bos and fifteen ids."""
    return [1, *(6 + (7 * i + 300) % (vocab_size - 6) for i in range(PROMPT_TOKENS - 1))]


# --- competitors ------------------------------------------------------------------------------------------------------------------------


def ours(job: Row) -> Callable[..., Row]:
    """Our decoder, drawing included."""
    import torch

    from positron_mini.config import SampleConfig
    from positron_mini.fast.decoder import Decoder
    from positron_mini.generate import Plain, draws
    from positron_mini.store.checkpoint import load_model, open_checkpoint

    torch.set_num_threads(job["threads"])
    model = load_model(open_checkpoint(Path(job["folder"])))
    engine = Plain(model) if job["weights"] == "plain" else Decoder(model, job["weights"])
    prompt = prompt_ids(model.config.vocab_size)
    config = SampleConfig(max_tokens=job["tokens"], temperature=job["temperature"])

    def turn(n: int) -> Row:
        times = []
        with torch.inference_mode():
            for _ in draws(engine, prompt, config, n=n, banned=torch.tensor([0])):
                times.append(time.perf_counter())
        return {"tok_per_s": n * (len(times) - 1) / (times[-1] - times[0])}

    return turn


def transformers(job: Row) -> Callable[..., Row]:
    """`generate` of transformers."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, Qwen3ForCausalLM

    torch.set_num_threads(job["threads"])
    model = Qwen3ForCausalLM.from_pretrained(job["folder"]).eval()
    prompt = prompt_ids(model.config.vocab_size)

    class Times(LogitsProcessor):  # type: ignore[misc]
        """Notes when each position was computed."""

        def __init__(self) -> None:
            self.seen: list[float] = []

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.seen.append(time.perf_counter())
            return scores

    def turn(n: int) -> Row:
        times = Times()
        sampling = {"do_sample": True, "temperature": job["temperature"], "top_k": 0} if job["temperature"] else {"do_sample": False}
        ids = torch.tensor([prompt] * n)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=job["tokens"],
            min_new_tokens=job["tokens"],
            logits_processor=LogitsProcessorList([times]),
            **sampling,
        )
        return {"tok_per_s": n * (len(times.seen) - 1) / (times.seen[-1] - times.seen[0])}

    return turn


def llama_cpp(job: Row) -> Callable[..., Row]:
    """llama.cpp's server, asked by as many clients as there are streams."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_parallel, params.n_ctx = job["streams"], job["streams"] * job["context_len"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.verbosity, params.port = 0, 0
    server = xllamacpp.Server(params)
    prompt = prompt_ids(job["vocab_size"])

    def one(_: int) -> float:
        body = {"prompt": prompt, "n_predict": job["tokens"], "temperature": job["temperature"], "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return float(json.load(answer)["timings"]["predicted_per_second"])

    def turn(n: int) -> Row:
        with ThreadPoolExecutor(n) as pool:
            return {"tok_per_s": sum(pool.map(one, range(n)))}

    return turn


def worker(job: Row) -> None:
    """Serve the turns of one competitor."""
    paired.work({"ours": ours, "transformers": transformers, "llama.cpp": llama_cpp}[job["who"]](job))


# --- the run ----------------------------------------------------------------------------------------------------------------------------


def jobs_of(folder: Path, gguf: dict[str, Path], streams: int, flags: argparse.Namespace) -> dict[str, Row]:
    """The competitors by name."""
    from positron_mini.store.checkpoint import open_checkpoint

    shape = open_checkpoint(folder).config
    base = {
        "folder": str(folder), "threads": flags.threads, "tokens": flags.tokens, "temperature": flags.temperature, "streams": streams,
        "context_len": shape.context_len, "vocab_size": shape.vocab_size,
    }  # fmt: skip
    return {
        "ours f32": {**base, "who": "ours", "weights": "f32"},
        "ours int8": {**base, "who": "ours", "weights": "int8"},
        "ours plain": {**base, "who": "ours", "weights": "plain"},
        "transformers": {**base, "who": "transformers"},
        "llama.cpp f32": {**base, "who": "llama.cpp", "gguf": str(gguf["f32"])},
        "llama.cpp Q8_0": {**base, "who": "llama.cpp", "gguf": str(gguf["q8_0"])},
    }


def prepared(flags: argparse.Namespace, scratch: Path) -> tuple[Path, dict[str, Path]]:
    """The checkpoint folder, made if none is given, and GGUF files of its weights."""
    from positron_mini.doctor.bench import made_model, made_tokenizer, write_made_checkpoint
    from positron_mini.export.model_files import export_gguf
    from positron_mini.store.checkpoint import open_checkpoint
    from positron_mini.store.find import find_checkpoint

    if flags.ckpt:
        folder = find_checkpoint(flags.ckpt).folder
    else:
        folder = scratch / "made"
        model = made_model(flags.config)
        write_made_checkpoint(folder, model, made_tokenizer(model.config.vocab_size))
    checkpoint = open_checkpoint(folder)
    return folder, {dtype: export_gguf(checkpoint, scratch / dtype, dtype).path for dtype in ("f32", "q8_0")}


def main() -> None:
    """Print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="a checkpoint (default: random weights)")
    parser.add_argument("--config", default="TinyGPT", help="preset of the random weights (default TinyGPT)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each stream (default 256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default 0)")
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of each (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/decoding-speed.json"), help="where the figures go")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        worker(json.loads(flags.worker))
        return
    found: dict[int, dict[str, list[Row]]] = {}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, gguf = prepared(flags, Path(scratch))
        for n in STREAMS:
            with paired.started(__file__, jobs_of(folder, gguf, n, flags), flags.threads) as competitors:
                found[n] = paired.take_turns(competitors, flags.rounds, n=n)
                peaks |= {f"{competitor.name}, {n}": competitor.close() for competitor in competitors}
    lines = [
        (who, n, f"{median(turns):,.0f}", spread(turns), f"{peaks[f'{who}, {n}'] / 1e9:.2f} GB")
        for n in STREAMS
        for who, turns in found[n].items()
    ]
    print(paired.markdown(("who", "streams", "tok/s in all", "least - most", "peak memory"), lines))
    speed = {n: {who: median(turns) for who, turns in rows.items()} for n, rows in found.items()}
    one, many = speed[STREAMS[0]], speed[STREAMS[-1]]
    ratios = {
        "f32 / transformers": (one["ours f32"] / one["transformers"], 2.5),
        "f32 / llama.cpp f32": (one["ours f32"] / one["llama.cpp f32"], 1.0),
        "int8 / llama.cpp Q8_0": (one["ours int8"] / one["llama.cpp Q8_0"], 1.0),
        "8 streams / one, f32": (many["ours f32"] / one["ours f32"], 4.0),
        "8 streams, f32 / llama.cpp f32": (many["ours f32"] / many["llama.cpp f32"], 1.0),
    }
    print()
    for name, (value, target) in ratios.items():
        print(f"{name}: {verdict(value, target)}")
    record = {
        **paired.circumstances(flags.threads, ("torch", "transformers", "xllamacpp")),
        "weights": flags.ckpt or f"random, {flags.config}",
        "tokens": flags.tokens,
        "temperature": flags.temperature,
        "streams": {
            n: {
                who: {
                    "tok_per_s": median(turns),
                    "tok_per_s_of_rounds": [row["tok_per_s"] for row in turns],
                    "peak_rss_bytes": peaks[f"{who}, {n}"],
                }
                for who, turns in rows.items()
            }
            for n, rows in found.items()
        },
        "ratios": {name: {"value": value, "target": target, "met": value >= target} for name, (value, target) in ratios.items()},
    }
    paired.write(record, flags.out)


if __name__ == "__main__":
    sys.exit(main())
