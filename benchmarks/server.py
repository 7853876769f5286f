"""The server under measurement: time to the first token, 64 clients at once, hostile requests, the page, memory over thousands of requests.

python benchmarks/server.py [--parts first crowd score refusals page soak] [--out server.json] [--requests 5000] [--seconds 60] [--ckpt C]

Without --ckpt all but the last one are taken on a model of TinyGPT's shape (15 million weights, drawn at random) and a tokenizer of 16,000
pieces made for the purpose; speed does not depend on what the weights are. The last one uses a model of two layers. Every server is a
process of its own, started as `positron serve`. The page needs Chromium and playwright, and is left out without them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
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

from positron_mini.config import ModelConfig, TrainConfig, model_config
from positron_mini.export.card import step_card
from positron_mini.model import GPT
from positron_mini.store.checkpoint import model_files, write_checkpoint
from positron_mini.text.tokenizer import BOS, Tokenizer, train_tokenizer

CLIENTS = 64
PARTS = ("first", "crowd", "score", "refusals", "page", "soak")
PANELS = ("chat", "compare", "next-token", "tokens", "surprise", "attention", "logit-lens", "training", "mask")
Figures = dict[str, Any]


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
    texts = model_files(shape, tokenizer, chat_template=None, card=step_card("benchmark", shape, {}, is_chat=False))
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
                lines = reply.iter_lines()
                next(line for line in lines if line)
                times.append(1e3 * (time.perf_counter() - began))
                for _ in lines:
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


def score_gap(url: str, checkpoint: Path, lines: int = 20) -> Figures:
    """The largest difference between ln p of a line by the server and by `positron score`, in two roundings of one model."""
    texts = random_words(lines, seed=3)
    command = [sys.executable, "-m", "positron_mini", "score", "--ckpt", str(checkpoint), "--json"]
    scored = subprocess.run(command, input="\n".join(texts) + "\n", capture_output=True, text=True, check=True).stdout.splitlines()
    gaps, written = [], []
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        for text, line in zip(texts, map(json.loads, scored), strict=True):
            asked = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
            found = http.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]["token_logprobs"]
            assert len(found) == line["tokens"]
            gaps.append(abs(sum(found) - line["logprob"]))
            # what was written, ln p as it was drawn, against the same text given and read in one pass
            drawn = http.post("/v1/completions", json={"prompt": text, "max_tokens": 20, "logprobs": 0, "temperature": 1, "seed": 1}).json()
            drawn = drawn["choices"][0]["logprobs"]
            count, begin = len(drawn["token_ids"]), http.post("/tokenize", json={"content": text}).json()["tokens"]
            asked = {"prompt": begin + drawn["token_ids"], "max_tokens": 0, "echo": True, "logprobs": 0}
            again = http.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"]["token_logprobs"][-count:]
            written.append(max(abs(a - b) for a, b in zip(drawn["token_logprobs"], again, strict=True)))
    return {"lines": lines, "line_gap_most": max(gaps), "written_token_gap_most": max(written)}


def refusals(url: str, process: psutil.Process, times: int = 5) -> Figures:
    """Milliseconds until a request beyond all measure is refused, and what the server's memory gains by all of them."""
    hostile = {
        "n of a thousand million": b'{"prompt": "x", "n": 1000000000}',
        "a prompt of a million characters": json.dumps({"prompt": "a b " * 250_000}).encode(),
        "10,000 messages": json.dumps({"messages": [{"role": "user", "content": "x"}] * 10_000}).encode(),
        "lists 100,000 deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "300,000 lists": b'{"prompt": [' + b"[]," * 300_000 + b"[]]}",
        "400,000 ids": b'{"prompt": [' + b"5," * 400_000 + b"5]}",
        "90,000 keys": b'{"messages": [], ' + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}",
        "an integer of 5,000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        "NaN": b'{"prompt": "x", "temperature": NaN}',
        "half a surrogate pair": rb'{"prompt": "\ud800"}',
        "bytes that are not UTF-8": b'{"prompt": "\xff\xfe"}',
    }
    found, before = {}, process.memory_info().rss
    with httpx.Client(base_url=url, trust_env=False, timeout=60, headers={"content-type": "application/json"}) as http:
        for name, body in hostile.items():
            spent = []
            for _ in range(times):
                began = time.perf_counter()
                reply = http.post("/v1/chat/completions" if b"messages" in body else "/v1/completions", content=body)
                spent.append(1e3 * (time.perf_counter() - began))
                assert 400 <= reply.status_code < 500, (name, reply.status_code)
            found[name] = quantile(spent, 0.5)
    return {"ms_median": found, "ms_most": max(found.values()), "rss_gain_mb": (process.memory_info().rss - before) / 1e6}


def page(url: str, visits: int = 3) -> Figures | None:
    """First paint of each panel in a fresh browser, in ms after the navigation began, and bytes of the page; None without a browser."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        return None
    paints, shown, weights = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.name == "posix" else [])
        for name in PANELS * visits:
            context = browser.new_context()
            tab = context.new_page()
            began = time.perf_counter()
            tab.goto(f"{url}/#{name}")
            tab.locator(f"[data-panel={name}]").wait_for()
            shown.append(1e3 * (time.perf_counter() - began))
            paints.append(tab.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            files = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
            files += ".filter((entry) => !entry.name.includes('/lab/api/'))"
            sums = [f"{files}.reduce((sum, entry) => sum + entry.{size}, 0)" for size in ("decodedBodySize", "encodedBodySize")]
            weights.append(tab.evaluate(f"() => [{', '.join(sums)}]"))
            context.close()
        browser.close()
    return {
        "visits": len(paints),
        "first_paint_ms_median": quantile(paints, 0.5),
        "first_paint_ms_most": max(paints),
        "panel_ms_most": max(shown),
        "bytes": max(plain for plain, _ in weights),
        "bytes_sent": max(sent for _, sent in weights),
    }


def measure(flags: argparse.Namespace, folder: Path) -> Figures:
    """The figures of the parts that were asked for, by part."""
    found: Figures = {}
    if set(flags.parts) - {"soak"}:
        if flags.ckpt is None:
            tokenizer = train_tokenizer(random_words(30_000), 16_000)
            checkpoint = write_random_model(folder / "model", model_config(TrainConfig(config="TinyGPT"), tokenizer.vocab_size), tokenizer)
        else:
            from positron_mini.store.find import find_checkpoint

            checkpoint, tokenizer = flags.ckpt, find_checkpoint(flags.ckpt).tokenizer
        with served(checkpoint, flags.threads) as (url, process):
            parts = {
                "first": lambda: first_tokens(url, tokenizer, flags.prompts),
                "score": lambda: score_gap(url, checkpoint),
                "refusals": lambda: refusals(url, process),
                "page": lambda: page(url),
                "crowd": lambda: asyncio.run(crowd(url, flags.seconds)),
            }
            found = {name: part() for name, part in parts.items() if name in flags.parts}
    if "soak" in flags.parts:
        small = train_tokenizer(random_words(2_000), 1_000)
        tiny = write_random_model(folder / "tiny", ModelConfig(2, 64, 2, 2, 32, 128, 128, small.vocab_size), small)
        with served(tiny, 1) as (url, process):
            found["soak"] = soak(url, process, flags.requests)
    return found


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ckpt", type=Path, help="a checkpoint instead of random weights")
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON; parts measured before are kept")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(flags, Path(name))
    if flags.out is not None and flags.out.exists():
        found = {**json.loads(flags.out.read_text()), **found}
    print("| what | measured | promised |\n|---|---|---|")
    tables = {
        "first": first_rows, "crowd": crowd_rows, "score": score_rows, "refusals": refusal_rows, "page": page_rows, "soak": soak_rows
    }  # fmt: skip
    for name, table in tables.items():
        for row in table(found[name]) if found.get(name) else ():
            print("| " + " | ".join(row) + " |")
    if flags.out is not None:
        flags.out.write_text(json.dumps(found, indent=2) + "\n")


# --- the figures beside what was promised -----------------------------------------------------------------------------------------------

Rows = list[tuple[str, str, str]]


def first_rows(found: Figures) -> Rows:
    """Time to the first token."""
    what = "first token, prompt of 50 tokens"
    return [
        (f"{what}, median of {found['requests']}", f"{found['first_token_ms_median']:.0f} ms", "150 ms"),
        (f"{what}, slowest of the 95 % fastest", f"{found['first_token_ms_p95']:.0f} ms", "150 ms"),
        (f"{what}, slowest", f"{found['first_token_ms_most']:.0f} ms", "150 ms"),
    ]


def crowd_rows(found: Figures) -> Rows:
    """64 clients at once."""
    wave = ", ".join(f"{count} times {status}" for status, count in found["first_wave"].items())
    return [
        (f"{found['clients']} requests at once", wave, "1 runs, 8 wait, the rest 429"),
        ("requests that wait, at the most", str(found["waiting_most"]), "8"),
        ("Retry-After, least", f"{found['retry_after_s_least']} s", "1 s or more"),
        (f"/health meanwhile, p99 of {found['health_requests']:,}", f"{found['health_ms_p99']:.1f} ms", "100 ms"),
        ("/health meanwhile, slowest", f"{found['health_ms_most']:.1f} ms", ""),
    ]


def score_rows(found: Figures) -> Rows:
    """ln p against `positron score`."""
    return [
        (f"ln p of a line against `positron score`, largest gap of {found['lines']}", f"{found['line_gap_most']:.1e}", "1e-4"),
        ("ln p of a token as it was written against the text read at once", f"{found['written_token_gap_most']:.1e}", "1e-4"),
    ]


def refusal_rows(found: Figures) -> Rows:
    """Requests beyond all measure."""
    slowest = max(found["ms_median"], key=found["ms_median"].get)
    return [
        (f"refusal, slowest of {len(found['ms_median'])} kinds ({slowest})", f"{found['ms_most']:.0f} ms", "100 ms"),
        ("memory gained by refusing", f"{found['rss_gain_mb']:.0f} MB", "50 MB"),
    ]


def page_rows(found: Figures) -> Rows:
    """The lab page."""
    return [
        (f"first paint, median of {found['visits']}", f"{found['first_paint_ms_median']:.0f} ms", "1,000 ms"),
        ("first paint, slowest", f"{found['first_paint_ms_most']:.0f} ms", "1,000 ms"),
        ("a panel stands, slowest", f"{found['panel_ms_most']:.0f} ms", ""),
        ("the whole page", f"{found['bytes'] / 1e3:.0f} kB, {found['bytes_sent'] / 1e3:.0f} kB sent", "300 kB"),
    ]


def soak_rows(found: Figures) -> Rows:
    """Memory over thousands of requests."""
    return [
        (f"memory gained in the last three quarters of {found['requests']:,} requests", f"{found['growth_mb']:.1f} MB", "flat"),
        ("open files, first and last", f"{found['files_first']}, {found['files_last']}", "equal"),
    ]


if __name__ == "__main__":
    main()
