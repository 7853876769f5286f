"""From logits to text: samplers as pure functions, and the loop that writes one token after the other.

Shapes: N samples drawn at once, T time in tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from positron_mini.config import SampleConfig
from positron_mini.model import GPT, KVCache
from positron_mini.tokenizer import BOS, UNK, IncrementalDecoder, Tokenizer

FinishReason = Literal["stop", "length"]


# --- samplers ---------------------------------------------------------------------------------------------------------------------------


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (V,) in which tokens `seen` (ids) became less likely: positive ones divided, negative ones multiplied by `penalty`.

    Source: Keskar et al. 2019 (arXiv 1909.05858).
    """
    if penalty == 1.0 or seen.numel() == 0:
        return logits
    chosen = logits[seen]
    return logits.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (V,) with all but the k largest set to minus infinity; 0 keeps all. Ties with the k-th are kept."""
    if k == 0 or k >= len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (V,) with only the likeliest tokens that together reach probability `p`; the likeliest always stays.

    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    if p >= 1.0:
        return logits
    ordered, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
    dropped = before >= p
    dropped[0] = False
    return logits.index_fill(0, order[dropped], float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (V,) without tokens less than `p` times as probable as the likeliest. Source: Nguyen et al. 2024 (arXiv 2407.01082)."""
    if p <= 0.0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), float("-inf"))


def distribution(logits: Tensor, seen: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities (V,), fp64, from which the next token is drawn: penalty, temperature, top-k, top-p, min-p, in this order.

    Temperature 0 puts everything on the likeliest token (the first one of a tie).
    """
    logits = penalise(logits.double(), seen, config.repetition_penalty)
    if config.temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    logits = logits / config.temperature
    return keep_min_p(keep_top_p(keep_top_k(logits, config.top_k), config.top_p), config.min_p).softmax(-1)


def draw(probabilities: Tensor, uniform: float) -> int:
    """The token whose stretch of the cumulated probabilities (V,) holds `uniform` in [0, 1)."""
    cumulated = probabilities.cumsum(-1)
    token = int(torch.searchsorted(cumulated, uniform * float(cumulated[-1]), right=True))
    return min(token, int(probabilities.nonzero()[-1]))  # rounding must never pick a token of probability zero


# --- text -------------------------------------------------------------------------------------------------------------------------------


class TextStream:
    """Turns token ids into text that is safe to show: unfinished characters and beginnings of stop strings are held back."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops, self._held = IncrementalDecoder(tokenizer), tuple(stops), ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with this token."""
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """What was held back, once no token follows."""
        text = "" if self.stopped else self._release(self._decoder.flush()) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        # (end, start): the stop string that is complete first counts, however the text was cut into tokens
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


# --- the loop ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """One drawn token of sample `index`. `text` is what it made certain (often its piece, sometimes empty).

    `logprob` is the model's own ln p of the token, before temperature and the other settings. The last token of a sample has a
    `finish_reason`.
    """

    id: int
    text: str
    logprob: float
    index: int = 0
    finish_reason: FinishReason | None = None


@dataclass
class Generation:
    """A finished sample. `text` excludes the prompt; seconds are wall-clock, `tok_per_s` counts this sample's tokens."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    tok_per_s: float = 0.0
    first_token_s: float = 0.0


class Reader:
    """The model with its cache: gives the logits that follow a growing sequence of N equally long samples.

    When the context is full it goes on from bos and the newest three quarters; so is a prompt that is longer than the context.
    """

    def __init__(self, model: GPT, samples: int) -> None:
        self.model, self.samples = model, samples
        self.device = next(model.parameters()).device
        self.cache = KVCache(model.config, 1, self.device)

    def read(self, history: Tensor) -> Tensor:
        """Logits (N, V) of the token after `history` (N, T), of which only the last column is new unless nothing was read yet."""
        if 0 < self.cache.length < self.model.config.context_len:
            return self._forward(history[:, -1:])
        window = self._newest(history)
        same = bool((window == window[:1]).all())  # a prompt is read once for all its samples
        window = window[:1] if same else window
        self.cache = KVCache(self.model.config, len(window), self.device)
        logits = self._forward(window)
        if same:
            self.cache.repeat(self.samples)
        return logits.expand(self.samples, -1)

    def _newest(self, history: Tensor) -> Tensor:
        """`history` where it fits the context, else bos and its newest three quarters of a context."""
        context = self.model.config.context_len
        if history.shape[1] <= context:
            return history
        start = torch.full((len(history), 1), BOS, dtype=history.dtype)
        return torch.cat((start, history[:, -(3 * context // 4) :]), dim=1)

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> Tensor:
        hidden = self.model.hidden(ids.to(self.device), self.cache)[:, -1]  # (N, C): only the last position needs the head
        return self.model.logits(hidden).cpu()


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: SampleConfig,
    *,
    n: int = 1,
    end_ids: frozenset[int] = frozenset({2}),
) -> Iterator[Token]:
    """Tokens as they are drawn, for `n` samples in turn. `prompt_ids` begin with bos. Sample i depends on (seed, i) only, not on n.

    Control tokens that do not end a text are never drawn, nor is unk. Errors: ValueError for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError("the prompt has no tokens; begin it with bos")
    banned = torch.tensor(sorted((tokenizer.control_ids | {UNK}) - end_ids))
    generators = [torch.Generator().manual_seed(config.seed * 1_000_003 + i) for i in range(n)]
    texts = [TextStream(tokenizer, config.stop) for _ in range(n)]
    history = torch.tensor([list(prompt_ids)] * n)  # (N, T)
    reader = Reader(model, n)
    alive = [True] * n
    for position in range(config.max_tokens):
        logits = reader.read(history).clone()  # (N, V)
        raw = logits.log_softmax(-1)
        logits[:, banned] = float("-inf")
        column = torch.zeros(n, 1, dtype=history.dtype)
        for i in range(n):
            uniform = float(torch.rand((), generator=generators[i], dtype=torch.float64))
            if not alive[i]:
                continue
            token = draw(distribution(logits[i], history[i], config), uniform)
            column[i] = token
            ended = token in end_ids
            text = "" if ended else texts[i].push(token)
            reason: FinishReason | None = "stop" if ended or texts[i].stopped else "length" if position == config.max_tokens - 1 else None
            alive[i] = reason is None
            yield Token(token, text if alive[i] else text + texts[i].flush(), float(raw[i, token]), i, reason)
        if not any(alive):
            return
        history = torch.cat((history, column), dim=1)


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    config: SampleConfig,
    *,
    n: int = 1,
    end_ids: frozenset[int] = frozenset({2}),
) -> list[Generation]:
    """`n` finished samples. A prompt given as text is read as bos + its tokens."""
    prompt_ids = [BOS, *tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)
    done = [Generation(prompt_token_ids=prompt_ids) for _ in range(n)]
    began = time.perf_counter()
    for token in stream(model, tokenizer, prompt_ids, config, n=n, end_ids=end_ids):
        now = time.perf_counter() - began
        sample = done[token.index]
        if not sample.token_ids:
            sample.first_token_s = now
        sample.text += token.text
        sample.token_ids.append(token.id)
        sample.logprobs.append(token.logprob)
        sample.tok_per_s = len(sample.token_ids) / max(now, 1e-9)
        if token.finish_reason is not None:
            sample.finish_reason = token.finish_reason
    return done


def milestone_samples(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], config: SampleConfig) -> list[str]:
    """One continuation of each prompt, each drawn with its own seed, for the samples of a run."""
    return [generate(model, tokenizer, prompt, replace(config, seed=config.seed + i))[0].text for i, prompt in enumerate(prompts)]
