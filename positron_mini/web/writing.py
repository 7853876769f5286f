"""Writing an answer: the job for the engine, and the numbers reported with the text."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

import positron_mini.generate as generate
from positron_mini.chat.model import CHAT_SETTINGS
from positron_mini.config import SampleConfig
from positron_mini.evaluate.lens import token_views
from positron_mini.fast.decoder import Decoder
from positron_mini.fast.plain import Watch
from positron_mini.generate import Token, check_finite, likeliest
from positron_mini.model import GPT
from positron_mini.text.tokenizer import BOS, IncrementalDecoder, Tokenizer
from positron_mini.web.engine import Job
from positron_mini.web.prompts import Prompt
from positron_mini.web.schemas import ChatRequest, CompletionRequest, SamplingRequest
from positron_mini.web.state import Served

LEAST_LOGPROB = -9999.0  # JSON has no infinity
ANY_SEED = (None, -1)
OWN_SEEDS = 10**12  # the largest seed of the command line

R = TypeVar("R", bound=SamplingRequest)


def with_seed(request: R) -> R:
    """The request with a random seed if it names none; all its texts are drawn with this seed."""
    return request.model_copy(update={"seed": secrets.randbelow(1 << 31)}) if request.seed in ANY_SEED else request


def seed_of(request: SamplingRequest) -> int:
    """The seed of a request that has one."""
    assert request.seed is not None
    return request.seed


def _own_seed(seed: int) -> int:
    """A seed in the range of `positron generate`: the same if it lies there, else one made from its digits."""
    if 0 <= seed <= OWN_SEEDS:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8]) % OWN_SEEDS


def sample_config(request: SamplingRequest, defaults: SampleConfig, wanted: int | None, room: int) -> SampleConfig:
    """The settings of a request, those left out taken from `defaults`, for `wanted` tokens but at most `room`."""

    def of(name: str) -> Any:
        value = getattr(request, name)
        return getattr(defaults, name) if value is None else value

    stop = request.stop or ()
    return SampleConfig(
        max_tokens=max(1, min(room if wanted is None else wanted, room)),
        temperature=of("temperature"),
        top_k=max(0, of("top_k")),
        top_p=of("top_p"),
        min_p=of("min_p"),
        repetition_penalty=of("repetition_penalty"),
        presence_penalty=of("presence_penalty"),
        frequency_penalty=of("frequency_penalty"),
        seed=_own_seed(seed_of(request)),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


@dataclass
class Order:
    """A prompt to be continued `n` times, and the times at which that happened. `top` None: no logprobs; `echo`: score the prompt first.
    `seed` is the request's; `config` has the one made from it for the generator."""

    served: Served
    prompt: Prompt
    config: SampleConfig
    seed: int
    n: int = 1
    top: int | None = None
    echo: bool = False
    scores_only: bool = False
    began: float = 0.0
    ended: float = 0.0  # when reading ended, if nothing is written
    times: list[float] = field(default_factory=list)  # when each token was there

    @classmethod
    def of_chat(cls, served: Served, prompt: Prompt, request: ChatRequest) -> Order:
        """The order for a conversation."""
        wanted = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        defaults = CHAT_SETTINGS if served.speaker.is_chat else SampleConfig()
        top = (request.top_logprobs or 0) if request.logprobs else None
        config = sample_config(request, defaults, wanted, prompt.room)
        return cls(served, prompt, config, seed_of(request), request.n or 1, top)

    @classmethod
    def of_text(cls, served: Served, prompt: Prompt, request: CompletionRequest) -> Order:
        """The order for a text; 80 tokens unless the request says how many."""
        wanted = SampleConfig().max_tokens if request.max_tokens is None else request.max_tokens
        config = sample_config(request, SampleConfig(), wanted, prompt.room)
        return cls(served, prompt, config, seed_of(request), request.n or 1, request.logprobs, request.echo or False, wanted == 0)

    def write(self, job: Job[Token]) -> Iterator[Token]:
        """Yield the tokens of the prompt if they are to be scored, then those of the answer. Runs in the engine's thread."""
        speaker = self.served.speaker
        self.began = time.perf_counter()
        if self.echo:
            with interruptible(speaker.gpt, job.check):
                read = prompt_tokens(speaker.gpt, self.prompt, self.top)
            yield from (replace(token, index=i) for i in range(self.n) for token in read)
        self.ended = time.perf_counter()
        if self.scores_only:
            return
        with interruptible(self.served.writer, job.check):
            tokens = generate.stream(
                self.served.writer,
                speaker.tokenizer,
                self.prompt.ids,
                self.config,
                n=self.n,
                end_ids=speaker.end_ids,
                top_logprobs=self.top or 0,
            )
            for token in tokens:
                self.times.append(time.perf_counter())
                yield token


def usage(orders: Sequence[Order]) -> dict[str, int]:
    """Tokens read and written so far."""
    read, written = sum(len(order.prompt.ids) for order in orders), sum(len(order.times) for order in orders)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def timings(orders: Sequence[Order], submitted: float) -> dict[str, float | int]:
    """Milliseconds in the queue, until the first token of each order, and for those after it."""
    spans = [(order.began, *((order.times[0], order.times[-1]) if order.times else (order.ended, order.ended))) for order in orders]
    read_s = sum(first - began for began, first, _ in spans)
    write_s = sum(last - first for _, first, last in spans)
    read, written = sum(len(order.prompt.ids) for order in orders), sum(len(order.times) for order in orders)
    following = sum(max(0, len(order.times) - 1) for order in orders)
    return {
        "queued_ms": round(1e3 * (orders[0].began - submitted), 3),
        "prompt_n": read,
        "prompt_ms": round(1e3 * read_s, 3),
        "prompt_per_second": round(read / max(read_s, 1e-9), 2),
        "predicted_n": written,
        "predicted_ms": round(1e3 * write_s, 3),
        "predicted_per_second": round(following / max(write_s, 1e-9), 2),
    }


@contextlib.contextmanager
def interruptible(model: GPT | Decoder, check: Callable[[], None]) -> Iterator[None]:
    """A context that calls `check` before every layer, so that its error can also stop the prefill of a long prompt."""
    if isinstance(model, Decoder):
        model.before_layer = check
        try:
            yield
        finally:
            model.before_layer = None
        return
    hooks = [block.register_forward_pre_hook(Watch(check)) for block in model.model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def prompt_tokens(model: GPT, prompt: Prompt, top: int | None) -> list[Token]:
    """The request's prompt tokens, each with its ln p given those before it; 0 for bos, which nothing precedes. `top` None: none."""
    if top is None:
        return [Token(index, "", 0.0) for index in prompt.ids[prompt.added :]]
    logprobs = model.logits(model.hidden(torch.tensor([prompt.ids])))[0].log_softmax(-1)  # (T, V)
    check_finite(logprobs, model)
    found = [Token(prompt.ids[0], "", 0.0)]
    for position, index in enumerate(prompt.ids[1:]):
        row = logprobs[position]
        found.append(Token(index, "", float(row[index]), top=likeliest(row, top) if top else ()))
    return found[prompt.added :]


# --- ln p, as OpenAI writes it ----------------------------------------------------------------------------------------------------------


def shown(tokenizer: Tokenizer, index: int) -> tuple[str, bytes]:
    """A token as text, or as `bytes:\\x..` if it is part of a character, and its bytes. A control token is shown by name."""
    (view,) = token_views(tokenizer, [index])
    if view.text is not None:
        return view.text, view.bytes
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in view.bytes) if view.bytes else view.piece, view.bytes


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The `logprobs` of a chat answer."""

    def entry(index: int, logprob: float) -> dict[str, Any]:
        text, data = shown(tokenizer, index)
        return {"token": text, "id": index, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(data)}

    content = [{**entry(t.id, t.logprob), "top_logprobs": [entry(*pair) for pair in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


class TextOffsets:
    """Where in the answer's text each token begins, counted in characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder, self._length = IncrementalDecoder(tokenizer), 0

    def push(self, index: int) -> int:
        """Where the next token begins."""
        start = self._length
        self._length += len(self._decoder.push(index))
        return start


def text_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], offsets: TextOffsets, *, top: int) -> dict[str, Any]:
    """The `logprobs` of a text answer. A bos has no ln p, because nothing precedes it."""
    scored = [None if token.id == BOS else max(token.logprob, LEAST_LOGPROB) for token in tokens]
    return {
        "tokens": [shown(tokenizer, token.id)[0] for token in tokens],
        "token_ids": [token.id for token in tokens],
        "token_logprobs": scored,
        "top_logprobs": [{shown(tokenizer, i)[0]: max(p, LEAST_LOGPROB) for i, p in t.top} for t in tokens] if top else None,
        "text_offset": [offsets.push(token.id) for token in tokens],
    }
