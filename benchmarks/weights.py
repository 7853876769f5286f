"""Writing with 8-bit weights beside f32: tokens a second, bits per byte on held-out stories, and how many greedy texts are equal.

    python benchmarks/weights.py --ckpt runs/NAME/latest --text HELD_OUT.txt [--config TinyGPT] [--rounds 15] [--threads N] [--cpu_time]

Both write in one process and take turns, so that what disturbs the machine disturbs both alike; the ratio is the median of the pairs.
On a busy machine `--threads 1 --cpu_time` counts the seconds that the processor worked for this program.
Bits per byte are of stories that fit the context, each token predicted by the decoder that writes. `--config` adds the speed of an
untrained model of that preset, of which every weight is random.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.functional import cross_entropy

from positron_mini.config import SampleConfig, Weights
from positron_mini.doctor.bench import made_model
from positron_mini.fast.decoder import Decoder, why_not_int8
from positron_mini.generate import draws
from positron_mini.model import GPT
from positron_mini.store.find import find_model
from positron_mini.text.corpus.files import ReadStats, read_documents
from positron_mini.text.tokenizer import BOS, Tokenizer

KINDS: tuple[Weights, ...] = ("f32", "int8")
ROWS = 32  # stories read at once
Clock = Callable[[], float]


def speed(model: GPT, rounds: int, tokens: int, streams: int, clock: Clock) -> tuple[dict[str, float], float]:
    """Median tokens a second of each kind at the settings of `positron generate`, and the median ratio of the pairs."""
    writers = {kind: Decoder(model, kind) for kind in KINDS}
    config = SampleConfig(max_tokens=tokens)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds + 1):  # the first one warms up
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            began = clock()
            for _ in draws(writers[kind], [BOS, *range(10, 25)], replace(config, seed=turn), n=streams, banned=torch.tensor([0])):
                pass
            found[kind].append(streams * tokens / (clock() - began))
    pairs = [b / a for a, b in zip(found["f32"][1:], found["int8"][1:], strict=True)]
    return {kind: median(values[1:]) for kind, values in found.items()}, median(pairs)


def layout_ms(model: GPT, kind: Weights, clock: Clock) -> float:
    """Median milliseconds until a decoder is ready."""
    times = []
    for _ in range(7):
        began = clock()
        Decoder(model, kind)
        times.append(clock() - began)
    return 1e3 * median(times)


@torch.inference_mode()
def bits_per_byte(writer: Decoder, tokenizer: Tokenizer, stories: Sequence[str]) -> float:
    """Bits per byte of the stories, every token after bos predicted one after the other as in writing."""
    nats = 0.0
    for start in range(0, len(stories), ROWS):
        rows = [torch.tensor(tokenizer.encode_document(story)) for story in stories[start : start + ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)  # (N, T)
        cache = writer.new_cache(len(rows))
        for place in range(ids.shape[1] - 1):
            logits = writer.next_logits(ids[:, place : place + 1].clamp(min=0), cache)
            nats += float(cross_entropy(logits, ids[:, place + 1], reduction="sum"))
    return nats / math.log(2) / sum(len(story.encode()) for story in stories)


def greedy(writer: Decoder, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int) -> list[list[int]]:
    """The likeliest continuation of each prompt, as ids."""
    config = SampleConfig(max_tokens=tokens, temperature=0.0)
    banned = torch.tensor([0])
    return [[drawn for (drawn,), _ in draws(writer, [BOS, *tokenizer.encode(prompt)], config, n=1, banned=banned)] for prompt in prompts]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--config", default="TinyGPT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--stories", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu_time", action="store_true")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    checkpoint, model = find_model(args.ckpt, say=print)
    if why := why_not_int8(model):
        raise SystemExit(f"no int8 here: {why}")

    print("| model | texts at once | f32, tokens/s | int8, tokens/s | int8 to f32 | ready after, f32 | ready after, int8 |")
    print("|---|---|---|---|---|---|---|")
    untrained = made_model(args.config)
    for name, each in ((f"{checkpoint.folder.parent.name}, trained", model), (f"{args.config}, untrained", untrained)):
        ready = [layout_ms(each, kind, clock) for kind in KINDS]
        for streams in (1, 8):
            both, ratio = speed(each, args.rounds, args.tokens, streams, clock)
            rates = f"{both['f32']:,.0f} | {both['int8']:,.0f} | {ratio:.2f}"
            print(f"| {name} | {streams} | {rates} | {ready[0]:.1f} ms | {ready[1]:.1f} ms |", flush=True)

    tokenizer, context = checkpoint.tokenizer, model.config.context_len
    texts = [text.strip("\r\n") for text in read_documents(args.text, stats=ReadStats())]
    stories = [text for text in texts if len(tokenizer.encode_document(text)) <= context][: args.stories]
    bits = {kind: bits_per_byte(Decoder(model, kind), tokenizer, stories) for kind in KINDS}
    prompts = [" ".join(story.split()[:8]) for story in stories[: args.prompts]]
    one, other = (greedy(Decoder(model, kind), tokenizer, prompts, args.tokens) for kind in KINDS)
    same = [next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x)) for x, y in zip(one, other, strict=True)]
    print(f"\nbits per byte on {len(stories):,} held-out stories: f32 {bits['f32']:.4f}, int8 {bits['int8']:.4f}", end=" ")
    print(f"({bits['int8'] - bits['f32']:+.5f})")
    equal = sum(length == args.tokens for length in same)
    print(f"greedy texts of {args.tokens} tokens: {equal} of {len(same)} equal; median length until they part: {median(same):.0f} tokens")


if __name__ == "__main__":
    main()
