"""From logits to text: samplers as pure functions, and the loop that writes one token after the other.

Shapes: N samples drawn at once, T time in tokens, V vocabulary. Samplers take logits of one sample, (V,), or of many, (N, V).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from positron_mini.config import ModelConfig, SampleConfig
from positron_mini.errors import NotFiniteOutput
from positron_mini.fast.decoder import quickest
from positron_mini.model import GPT, KVCache
from positron_mini.text.tokenizer import BOS, UNK, IncrementalDecoder, Tokenizer

FinishReason = Literal["stop", "length"]


# --- samplers ---------------------------------------------------------------------------------------------------------------------------


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits in which tokens `seen` (ids, (T,) or (N, T)) became less likely: positive ones divided, negative ones multiplied by `penalty`.

    Source: Keskar et al. 2019 (arXiv 1909.05858).
    """
    if penalty == 1.0 or seen.numel() == 0:
        return logits
    chosen = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def discourage(logits: Tensor, written: Tensor, *, presence: float, frequency: float) -> Tensor:
    """Logits less `frequency` for each time that a token is among the ids `written`, (T,) or (N, T), and less `presence` if it is at all.

    Negative penalties encourage. Source: OpenAI's API reference, whose penalties also count what was written, not the prompt.
    """
    if (presence == 0.0 and frequency == 0.0) or written.numel() == 0:
        return logits
    counts = torch.zeros_like(logits).scatter_add(-1, written, torch.ones_like(written, dtype=logits.dtype))
    return logits - frequency * counts - presence * (counts > 0)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest set to minus infinity; 0 keeps all. Ties with the k-th are kept."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits with only the likeliest tokens that together reach probability `p`; the likeliest always stays, of a tie the first.

    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    if p >= 1.0:
        return logits
    ordered, order = _likeliest_first(logits.softmax(-1), p)
    before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
    kept = before < p
    kept[..., 0] = True
    return logits.masked_fill(~torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept), float("-inf"))


def _likeliest_first(probabilities: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens in order, as probabilities and ids, at least so many that those above the last one reach `p`.

    Sorting a whole vocabulary takes longer than a small model takes for a token, and a few tokens are mostly enough.
    """
    size = probabilities.shape[-1]
    for k in (64, 1024):
        if k >= size:
            break
        best = probabilities.topk(k, sorted=False)
        above = best.values > best.values.amin(-1, keepdim=True)  # of those that tie with the last one, others may be missing
        if bool(((best.values * above).sum(-1) >= p + 1e-9).all()):  # a margin, for sums depend on their order
            ids = best.indices.sort(-1).values  # by id first, for a stable sort keeps the order of a tie
            ordered, order = probabilities.gather(-1, ids).sort(descending=True, stable=True)
            return ordered, ids.gather(-1, order)
    ordered, order = probabilities.sort(descending=True, stable=True)
    return ordered, order


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits without tokens less than `p` times as probable as the likeliest. Source: Nguyen et al. 2024 (arXiv 2407.01082)."""
    if p <= 0.0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))


def distribution(logits: Tensor, seen: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities, fp64, from which the next token is drawn: penalty, temperature, top-k, top-p, min-p, in this order.

    Temperature 0 puts everything on the likeliest token (the first one of a tie).
    """
    logits = penalise(logits.double(), seen, config.repetition_penalty)
    if config.temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature  # the largest is 0, which no temperature makes infinite
    return keep_min_p(keep_top_p(keep_top_k(logits, config.top_k), config.top_p), config.min_p).softmax(-1)


def likeliest(logprobs: Tensor, k: int) -> tuple[tuple[int, float], ...]:
    """The `k` likeliest tokens of ln p (V,), each as (id, ln p), the likeliest first."""
    best = logprobs.topk(min(k, len(logprobs)))
    return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def draw(probabilities: Tensor, uniform: float) -> int:
    """The token whose stretch of the cumulated probabilities (V,) holds `uniform` in [0, 1)."""
    return draw_each(probabilities[None], [uniform])[0]


def draw_each(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    """`draw` for every row of probabilities (N, V), each with its own uniform number."""
    cumulated = probabilities.cumsum(-1)  # (N, V)
    targets = torch.tensor(uniforms, dtype=cumulated.dtype)[:, None] * cumulated[:, -1:]  # (N, 1)
    tokens: list[int] = torch.searchsorted(cumulated, targets, right=True)[:, 0].tolist()
    # a target that rounds up to the whole lies beyond the last token: rounding must never pick one of probability zero
    return [token if token < len(row) else int(row.nonzero()[-1]) for token, row in zip(tokens, probabilities, strict=True)]


def choose(logits: Tensor, seen: Tensor, config: SampleConfig, uniforms: Sequence[float]) -> list[int]:
    """The next token of each sample, from logits (N, V): drawn from its `distribution`, or at temperature 0 the likeliest one."""
    if config.temperature == 0.0:
        greedy: list[int] = penalise(logits.double(), seen, config.repetition_penalty).argmax(-1).tolist()
        return greedy
    return draw_each(distribution(logits, seen, config), uniforms)


def check_finite(values: Tensor, model: GPT | Engine) -> None:
    """Raise NotFiniteOutput if one of `values`, which `model` computed, is not a finite number."""
    if not bool(values.isfinite().all()):
        raise NotFiniteOutput(
            f"{model.name}: the model computes numbers that are not finite, because its weights are too large",
            "use an earlier step of the run; a new run with a smaller --lr may avoid it",
        )


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

    `logprob` is the model's own ln p of the token, before temperature and the other settings; `top` has the likeliest tokens there as
    (id, ln p), where they were asked for. The last token of a sample has a `finish_reason`.
    """

    id: int
    text: str
    logprob: float
    index: int = 0
    finish_reason: FinishReason | None = None
    top: tuple[tuple[int, float], ...] = ()


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


class Engine(Protocol):
    """What computes logits: `Plain` or a `Decoder`. A cache is its own, has `length` and `repeat`, and belongs to one text at a time."""

    config: ModelConfig
    name: str

    def new_cache(self, batch: int) -> Any:
        """Room for `batch` sequences that have not begun."""

    def next_logits(self, ids: Tensor, cache: Any) -> Tensor:
        """Logits (N, V) on the CPU of the token after `ids` (N, T), which continue what `cache` holds."""


class Plain:
    """The model as it is written in `model.py`, on whatever device it is: what `Decoder` must agree with."""

    def __init__(self, model: GPT) -> None:
        self.model, self.config, self.name = model, model.config, model.name
        self.device = next(model.parameters()).device

    def new_cache(self, batch: int) -> KVCache:
        """Room for `batch` sequences that have not begun."""
        return KVCache(self.config, batch, self.device)

    @torch.inference_mode()
    def next_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (N, V) on the CPU of the token after `ids` (N, T), which continue what `cache` holds."""
        hidden = self.model.hidden(ids.to(self.device), cache)[:, -1]  # (N, C): only the last position needs the head
        return self.model.logits(hidden).cpu()


class Reader:
    """A model with its cache: gives the logits that follow a growing sequence of N equally long samples.

    When the context is full it goes on from bos and the newest three quarters; so is a prompt that is longer than the context.
    """

    def __init__(self, model: GPT | Engine, samples: int) -> None:
        self.engine: Engine = Plain(model) if isinstance(model, GPT) else model
        self.samples = samples
        self.cache: Any = None

    def read(self, history: Tensor) -> Tensor:
        """Logits (N, V) of the token after `history` (N, T), of which only the last column is new unless nothing was read yet.

        Every ln p made of them is a finite number. Errors: NotFiniteOutput.
        """
        logits = self._read(history)
        least, most = logits.aminmax(dim=-1)  # (N,): what lies further apart than fp32 reaches has no ln p either
        check_finite(most - least, self.engine)
        return logits

    def _read(self, history: Tensor) -> Tensor:
        if self.cache is not None and self.cache.length < self.engine.config.context_len:
            return self.engine.next_logits(history[:, -1:], self.cache)
        window = self._newest(history)
        same = bool((window == window[:1]).all())  # a prompt is read once for all its samples
        window = window[:1] if same else window
        self.cache = self.engine.new_cache(len(window))
        logits = self.engine.next_logits(window, self.cache)
        if same:
            self.cache.repeat(self.samples)
        return logits.expand(self.samples, -1)

    def _newest(self, history: Tensor) -> Tensor:
        """`history` where it fits the context, else bos and its newest three quarters of a context."""
        context = self.engine.config.context_len
        if history.shape[1] <= context:
            return history
        start = torch.full((len(history), 1), BOS, dtype=history.dtype)
        return torch.cat((start, history[:, -(3 * context // 4) :]), dim=1)


def draws(
    model: GPT | Engine, prompt_ids: Sequence[int], config: SampleConfig, *, n: int, banned: Tensor
) -> Iterator[tuple[list[int], Tensor]]:
    """At each new position the token drawn for each of `n` samples, and ln p (N, V) there. Ids in `banned` are never drawn.

    A model on the CPU is read through a `Decoder`, made for this text where that is repaid; who writes many texts makes one and gives it.
    """
    generators = [torch.Generator().manual_seed(config.seed * 1_000_003 + i) for i in range(n)]
    history = torch.tensor([list(prompt_ids)] * n)  # (N, T)
    reader = Reader(quickest(model, config.max_tokens) if isinstance(model, GPT) else model, n)
    for _ in range(config.max_tokens):
        logits = reader.read(history)  # (N, V)
        uniforms = [float(torch.rand((), generator=generator, dtype=torch.float64)) for generator in generators]
        written = history[:, len(prompt_ids) :]  # (N, T) without the prompt
        allowed = discourage(logits, written, presence=config.presence_penalty, frequency=config.frequency_penalty)
        drawn = choose(allowed.index_fill(1, banned, float("-inf")), history, config, uniforms)
        yield drawn, logits.log_softmax(-1)
        history = torch.cat((history, torch.tensor(drawn)[:, None]), dim=1)


def stream(
    model: GPT | Engine,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    config: SampleConfig,
    *,
    n: int = 1,
    end_ids: frozenset[int] = frozenset({2}),
    top_logprobs: int = 0,
) -> Iterator[Token]:
    """Tokens as they are drawn, for `n` samples in turn. `prompt_ids` begin with bos. Sample i depends on (seed, i) only, not on n.

    Control tokens that do not end a text are never drawn, nor is unk. Errors: ValueError for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError("the prompt has no tokens; begin it with bos")
    banned = torch.tensor(sorted((tokenizer.control_ids | {UNK}) - end_ids))
    texts = [TextStream(tokenizer, config.stop) for _ in range(n)]
    alive = [True] * n
    for position, (drawn, logprobs) in enumerate(draws(model, prompt_ids, config, n=n, banned=banned)):
        own = logprobs.gather(1, torch.tensor(drawn)[:, None])[:, 0].tolist()
        for i, token in enumerate(drawn):
            if not alive[i]:
                continue  # it is read on with the others, which costs less than taking its row out
            ended = token in end_ids
            text = "" if ended else texts[i].push(token)
            reason: FinishReason | None = "stop" if ended or texts[i].stopped else "length" if position == config.max_tokens - 1 else None
            alive[i] = reason is None
            top = likeliest(logprobs[i], top_logprobs) if top_logprobs else ()
            yield Token(token, text if alive[i] else text + texts[i].flush(), own[i], i, reason, top)
        if not any(alive):
            return


def generate(
    model: GPT | Engine,
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
