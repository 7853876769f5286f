"""`positron generate`: print the continuation of a prompt, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from positron_mini.cli.flags import parse, print_json
from positron_mini.cli.terminal import print, printable, read_stdin
from positron_mini.cli.which import open_model, with_model
from positron_mini.config import SampleConfig, Weights, check_ranges
from positron_mini.errors import UsageError
from positron_mini.store.opening import STORY, opening_of

if TYPE_CHECKING:
    from positron_mini.fast.decoder import Decoder
    from positron_mini.model import GPT
    from positron_mini.store.checkpoint import Checkpoint
    from positron_mini.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerateFlags(SampleConfig):
    """Continue a prompt. A prompt longer than the context is read as bos and its newest three quarters of a context."""

    prompt: str | None = None
    """the text to continue; - reads it from stdin (default: how the texts began that the model learned from)"""
    ckpt: str | None = None
    """checkpoint: a step folder, a run folder or runs/x/latest (default: the newest finished run)"""
    tokenizer_path: str | None = None
    """checked against the checkpoint's own tokenizer, if given"""
    n: int = 1
    """samples to draw at once"""
    json: bool = False
    """print one JSON object instead of text"""
    device: str = "auto"
    """where to compute: auto, cpu, mps or cuda (auto takes the CPU, which is the fastest for one stream of a small model)"""
    weights: Weights = "f32"
    """f32, or int8: rounded to 8 bits to write sooner, on a CPU"""
    threads: int | None = None
    """CPU threads (default: all cores)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"n": 1, "threads": 1})
        if self.n > 1024:
            raise UsageError(f"--n {self.n:,} samples at once is more than 1,024", "--n 8")
        if self.ckpt == "":
            raise UsageError("--ckpt is empty", "--ckpt runs/NAME, or leave it out for the newest finished run")


def run(argv: Sequence[str]) -> int:
    """Generate; 0 when done."""
    flags = parse(GenerateFlags, argv, "generate")
    from positron_mini.chat.model import usable
    from positron_mini.device import set_threads
    from positron_mini.fast.decoder import quickest
    from positron_mini.generate import generate
    from positron_mini.store.checkpoint import check_tokenizer

    checkpoint, model = open_model(flags.ckpt, with_model)
    check_tokenizer(flags.tokenizer_path, checkpoint)
    set_threads(flags.threads)
    if flags.device not in ("auto", "cpu"):
        from positron_mini import device as devices

        model = model.to(devices.torch_device(devices.choose(devices.this_machine(), flags.device).device))
    writer = quickest(model, flags.max_tokens, usable(flags.weights, model))
    prompt = _prompt(flags.prompt, checkpoint)
    if not flags.json and flags.n == 1:
        return _stream(writer, checkpoint.tokenizer, prompt, flags, checkpoint.end_ids)
    samples = generate(writer, checkpoint.tokenizer, prompt, flags, n=flags.n, end_ids=checkpoint.end_ids)
    if not flags.json:
        for i, sample in enumerate(samples, 1):
            print(f"--- {i} ---\n{printable(prompt + sample.text)}")
        return 0
    rows = [
        {
            "text": s.text,
            "token_ids": s.token_ids,
            "prompt_token_ids": s.prompt_token_ids,
            "finish_reason": s.finish_reason,
            "tok_per_s": round(s.tok_per_s, 2),
            "first_token_s": round(s.first_token_s, 4),
        }
        for s in samples
    ]
    print_json(rows[0] if flags.n == 1 else {"samples": rows})
    return 0


def _prompt(given: str | None, checkpoint: Checkpoint) -> str:
    """The text to continue: from the command line or stdin, else a default that suits the model."""
    if given == "-":
        return read_stdin().replace("\r\n", "\n").replace("\r", "\n")
    if given is not None:
        return given
    return (None if checkpoint.is_chat else opening_of(checkpoint.folder.resolve().parent)) or STORY


def _stream(writer: GPT | Decoder, tokenizer: Tokenizer, prompt: str, flags: GenerateFlags, end_ids: frozenset[int]) -> int:
    """Print the prompt and its continuation as it is drawn; 0 when done."""
    from positron_mini.generate import stream
    from positron_mini.text.tokenizer import BOS

    print(printable(prompt), end="", flush=True)
    for token in stream(writer, tokenizer, [BOS, *tokenizer.encode(prompt)], flags, end_ids=end_ids):
        print(printable(token.text), end="", flush=True)
    print()
    return 0
