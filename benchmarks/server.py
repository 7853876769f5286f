"""The server under measurement: time to the first token, 64 clients at once, and memory over thousands of requests.

python benchmarks/server.py [--out server.json] [--requests 5000] [--seconds 60] [--ckpt CHECKPOINT]

Without --ckpt the first two are taken on a model of TinyGPT's shape (15 million weights, drawn at random) and a tokenizer of 16,000 pieces
made for the purpose; speed does not depend on what the weights are. The last one uses a model of two layers. Every server is a process
of its own, started as `positron serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

from positron_mini.checkpoint import model_card, model_files, write_checkpoint
from positron_mini.config import ModelConfig, TrainConfig, model_config
from positron_mini.model import GPT
from positron_mini.tokenizer import BOS, Tokenizer, train_tokenizer

TARGETS = {"first_token_ms": 150.0, "health_p99_ms": 100.0, "waiting": 8, "growth_mb": 10.0}
CLIENTS = 64


def random_words(count: int, seed: int = 0) -> list[str]:
    """Sentences of made-up words, varied enough for a vocabulary of 16,000."""
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bdfghklmnprstvwz" for b in "aeiou" for c in ("", "n", "r", "s", "l", "t")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]
    return [" ".join(rng.choices(words, k=12)) + "." for _ in range(count)]


def write_random_model(folder: Path, shape: ModelConfig, tokenizer: Tokenizer) -> Path:
    """A checkpoint of that shape whose weights are drawn at random."""
    model = GPT(shape).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    texts = model_files(shape, tokenizer, chat_template=None, card=model_card("benchmark", shape, {}, is_chat=False))
    write_checkpoint(folder, {name: p.detach() for name, p in model.named_parameters()}, texts, None)
    return folder


@contextlib.contextmanager
def served(checkpoint: Path, threads: int | None) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server of `checkpoint`, and its process."""
    command = [sys.executable, "-m", "positron_mini", "serve", "--ckpt", str(checkpoint), "--port", "0"]
    command += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def first_tokens(url: str, tokenizer: Tokenizer, count: int) -> dict[str, Any]:
    """Milliseconds from sending a request of 50 tokens to the first event of its answer, each prompt different, after one to warm up."""
    rng = random.Random(1)
    times = []
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for _ in range(count + 1):
            prompt = [BOS, *(rng.randrange(300, tokenizer.vocab_size) for _ in range(49))]
            body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
            began = time.perf_counter()
            with http.stream("POST", "/v1/completions", json=body) as reply:
                next(line for line in reply.iter_lines() if line)
                times.append(1e3 * (time.perf_counter() - began))
                for _ in reply.iter_lines():
                    pass
    times = times[1:]
    return {
        "requests": count,
        "first_token_ms_median": quantile(times, 0.5),
        "first_token_ms_p95": quantile(times, 0.95),
        "first_token_ms_most": max(times),
    }


async def crowd(url: str, seconds: float) -> dict[str, Any]:
    """What 64 clients get that ask again and again, and how long /health takes meanwhile."""
    statuses: dict[int, int] = {}
    health: list[float] = []
    waiting: list[int] = []
    after: list[int] = []
    first: dict[int, int] = {}  # statuses of the first request of each client, sent at once
    end = time.monotonic() + seconds

    async def client(http: httpx.AsyncClient, number: int) -> None:
        is_first = True
        while is_first or time.monotonic() < end:
            body = {"prompt": f"{number} once", "max_tokens": 60, "temperature": 1, "seed": number}
            reply = await http.post("/v1/completions", json=body)
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            if is_first:
                first[reply.status_code] = first.get(reply.status_code, 0) + 1
            is_first = False
            if reply.status_code == 429:
                after.append(int(reply.headers["retry-after"]))
                await asyncio.sleep(min(after[-1], 2))

    async def look(http: httpx.AsyncClient, clients: asyncio.Future[Any]) -> None:
        while not clients.done():
            began = time.perf_counter()
            found = (await http.get("/health")).json()
            health.append(1e3 * (time.perf_counter() - began))
            waiting.append(found["waiting"])
            await asyncio.sleep(0.02)

    limits = httpx.Limits(max_connections=CLIENTS + 1)
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=120, limits=limits) as http,
        httpx.AsyncClient(base_url=url, trust_env=False) as doctor,
    ):
        clients = asyncio.gather(*(client(http, number) for number in range(CLIENTS)))
        await look(doctor, clients)
        await clients
    return {
        "clients": CLIENTS,
        "seconds": seconds,
        "first_wave": {str(status): count for status, count in sorted(first.items())},
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "waiting_most": max(waiting),
        "retry_after_s_least": min(after, default=None),
        "health_requests": len(health),
        "health_ms_median": quantile(health, 0.5),
        "health_ms_p99": quantile(health, 0.99),
        "health_ms_most": max(health),
    }


def soak(url: str, process: psutil.Process, requests: int) -> dict[str, Any]:
    """Memory and open files of the server over so many requests of all kinds, every tenth on a connection of its own."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "a b c", "max_tokens": 4},
        {"prompt": "a b c", "max_tokens": 4, "stream": True},
        {"prompt": "a b c", "max_tokens": 2, "logprobs": 5, "echo": True},
        {"prompt": "a b c", "temperature": 9},
    ]
    samples = []
    began = time.monotonic()
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for number in range(1, requests + 1):
            body = bodies[number % len(bodies)]
            if number % 10:
                reply = http.post("/v1/completions", json=body)
            else:
                reply = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
            assert reply.status_code == (400 if "temperature" in body else 200), reply.text
            if number % max(1, requests // 20) == 0:
                samples.append({"requests": number, "rss_mb": process.memory_info().rss / 1e6, "files": process.num_fds()})
    settled = samples[len(samples) // 4 :]  # the first quarter fills caches
    return {
        "requests": requests,
        "requests_per_s": requests / (time.monotonic() - began),
        "growth_mb": settled[-1]["rss_mb"] - settled[0]["rss_mb"],
        "files_first": samples[0]["files"],
        "files_last": samples[-1]["files"],
        "samples": samples,
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="a checkpoint instead of random weights")
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = train_tokenizer(random_words(2_000), 1_000)
        tiny = write_random_model(folder / "tiny", ModelConfig(2, 64, 2, 2, 32, 128, 128, small.vocab_size), small)
        if flags.ckpt is None:
            tokenizer = train_tokenizer(random_words(30_000), 16_000)
            checkpoint = write_random_model(folder / "model", model_config(TrainConfig(config="TinyGPT"), tokenizer.vocab_size), tokenizer)
        else:
            from positron_mini.runs import find_checkpoint

            checkpoint, tokenizer = flags.ckpt, find_checkpoint(flags.ckpt).tokenizer
        with served(checkpoint, flags.threads) as (url, _):
            first = first_tokens(url, tokenizer, flags.prompts)
            many = asyncio.run(crowd(url, flags.seconds))
        with served(tiny, 1) as (url, process):
            long = soak(url, process, flags.requests)
    print_table(first, many, long)
    if flags.out is not None:
        flags.out.write_text(json.dumps({"first_token": first, "crowd": many, "soak": long}, indent=2) + "\n")


def print_table(first: dict[str, Any], many: dict[str, Any], long: dict[str, Any]) -> None:
    """The figures beside what was promised."""
    rows = [
        ("first token, prompt of 50 tokens, median", f"{first['first_token_ms_median']:.0f} ms", f"{TARGETS['first_token_ms']:.0f} ms"),
        ("first token, slowest of the 95 % fastest", f"{first['first_token_ms_p95']:.0f} ms", f"{TARGETS['first_token_ms']:.0f} ms"),
        ("64 requests at once, by status", str(many["first_wave"]), "9 answered, the rest 429"),
        ("requests that wait, at the most", str(many["waiting_most"]), str(TARGETS["waiting"])),
        ("Retry-After, least", f"{many['retry_after_s_least']} s", "1 s"),
        ("/health meanwhile, p99", f"{many['health_ms_p99']:.1f} ms", f"{TARGETS['health_p99_ms']:.0f} ms"),
        (f"memory gained in the last three quarters of {long['requests']:,} requests", f"{long['growth_mb']:.1f} MB", "flat"),
        ("open files, first and last", f"{long['files_first']}, {long['files_last']}", "equal"),
    ]
    print("| what | measured | promised |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
