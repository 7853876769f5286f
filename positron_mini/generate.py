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

FinishReason = Literal["stop", "length"]  # an end token or a stop string; `max_tokens`


# --- samplers ---------------------------------------------------------------------------------------------------------------------------


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits in which tokens `seen` (ids, (T,) or (N, T)) became less likely: positive ones divided, negative ones multiplied by `penalty`.

    Source: Keskar et al. 2019 (arXiv 1909.05858).
    """
    if penalty == 1.0 or seen.numel() == 0:
        return logits
    chosen = logits.gather(-1, seen)  # (N, T); a token that was seen twice is written twice below, both times the same
    # dividing a negative logit would make its token likelier
    return logits.scatter(-1, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def discourage(logits: Tensor, written: Tensor, *, presence: float, frequency: float) -> Tensor:
    """Logits less `frequency` for each time that a token is among the ids `written`, (T,) or (N, T), and less `presence` if it is at all.

    Negative penalties encourage. Source: OpenAI's API reference, whose penalties also count what was written, not the prompt.
    """
    if (presence == 0.0 and frequency == 0.0) or written.numel() == 0:
        return logits
    # subtracting c divides the odds by e^c, whatever the sign and size of a logit
    counts = torch.zeros_like(logits).scatter_add(-1, written, torch.ones_like(written, dtype=logits.dtype))  # (N, V)
    return logits - frequency * counts - presence * (counts > 0)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest set to minus infinity; 0 keeps all. Ties with the k-th are kept."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], float("-inf"))  # which softmax turns into a probability of 0


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits with only the likeliest tokens that together reach probability `p`; the likeliest always stays, of a tie the first.

    Source: Holtzman et al. 2019 (arXiv 1904.09751).
    """
    if p >= 1.0:
        return logits
    probabilities = logits.softmax(-1)  # (N, V)
    few = _likeliest_few(probabilities, p)
    # the smallest set that reaches p is made of the likeliest tokens, so they are sorted and counted from the top
    ordered, order = probabilities.sort(descending=True, stable=True) if few is None else few  # (N, V) or (N, k) each
    before = ordered.cumsum(-1) - ordered  # (N, V) or (N, k), probability of all likelier tokens
    kept = before < p  # so the token that crosses p is still in
    kept[..., 0] = True
    # back from places in the order to ids; those that were not sorted are not kept
    return logits.masked_fill(~torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept), float("-inf"))


def _likeliest_few(probabilities: Tensor, p: float) -> tuple[Tensor, Tensor] | None:
    """The beginning of the sorted probabilities and their ids, (N, k) each, for a `p` that it reaches; None if it takes too many tokens.

    Same result, faster: sorting a whole vocabulary takes longer than a small model takes for a token, and a few tokens are mostly enough.
    """
    for k in (64, 1024):  # one for a model that is sure, one for high temperatures
        if k >= probabilities.shape[-1]:
            break
        best = probabilities.topk(k, sorted=False)  # (N, k) each
        above = best.values > best.values.amin(-1, keepdim=True)  # of those that tie with the last one, others may be missing
        if bool(((best.values * above).sum(-1) >= p + 1e-9).all()):  # a margin, for sums depend on their order
            ids = best.indices.sort(-1).values  # by id first, for a stable sort keeps the order of a tie
            ordered, order = probabilities.gather(-1, ids).sort(descending=True, stable=True)
            return ordered, ids.gather(-1, order)
    return None


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits without tokens less than `p` times as probable as the likeliest. Source: Nguyen et al. 2024 (arXiv 2407.01082)."""
    if p <= 0.0:
        return logits
    # the bar follows the likeliest token: where the model is sure few pass, where it is not all those that are nearly as good
    probabilities = logits.softmax(-1)  # (N, V)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))


def distribution(logits: Tensor, seen: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities, fp64, from which the next token is drawn: penalty, temperature, top-k, top-p, min-p, in this order.

    Temperature 0 puts everything on the likeliest token (the first one of a tie).
    """
    if config.temperature == 0.0:
        return torch.nn.functional.one_hot(greedy(logits, seen, config), logits.shape[-1]).double()
    logits = penalise(logits.double(), seen, config.repetition_penalty)  # fp64: the sum of V probabilities is 1 to 15 digits
    # The largest is moved to 0, which changes no probability and which no temperature makes infinite. Below 1 the division spreads the
    # logits apart, so that the likely tokens win; above 1 it brings them together.
    logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature
    # each counts within what the one before has left
    return keep_min_p(keep_top_p(keep_top_k(logits, config.top_k), config.top_p), config.min_p).softmax(-1)


def greedy(logits: Tensor, seen: Tensor, config: SampleConfig) -> Tensor:
    """The likeliest token of each sample, (N,), which is what temperature 0 means; of a tie the first one."""
    return penalise(logits.double(), seen, config.repetition_penalty).argmax(-1)


def likeliest(logprobs: Tensor, k: int) -> tuple[tuple[int, float], ...]:
    """The `k` likeliest tokens of ln p (V,), each as (id, ln p), the likeliest first."""
    best = logprobs.topk(min(k, len(logprobs)))  # (k,) each
    return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def draw(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    """For each row of probabilities (N, V) the token whose stretch of their cumulated sum holds the row's number in [0, 1)."""
    # torch.multinomial does this too, but its numbers come from one generator for all rows, and differ between devices and releases
    cumulated = probabilities.cumsum(-1)  # (N, V)
    targets = torch.tensor(uniforms, dtype=cumulated.dtype)[:, None] * cumulated[:, -1:]  # (N, 1)
    tokens: list[int] = torch.searchsorted(cumulated, targets, right=True)[:, 0].tolist()
    # a target that rounds up to the whole lies beyond the last token: rounding must never pick one of probability zero
    return [token if token < len(row) else int(row.nonzero()[-1]) for token, row in zip(tokens, probabilities, strict=True)]


def choose(logits: Tensor, seen: Tensor, config: SampleConfig, uniforms: Sequence[float]) -> list[int]:
    """The next token of each sample, from logits (N, V) and a uniform number each: drawn from its `distribution`."""
    if config.temperature == 0.0:  # same result, faster: a one-hot distribution need not be drawn from
        likeliest_ids: list[int] = greedy(logits, seen, config).tolist()
        return likeliest_ids
    return draw(distribution(logits, seen, config), uniforms)


def check_finite(values: Tensor, model: GPT | Engine) -> None:
    """Raise NotFiniteOutput if one of `values`, which `model` computed, is not a finite number."""
    if not bool(values.isfinite().all()):
        raise NotFiniteOutput(
            f"{model.name}: the model computes numbers that are not finite, because its weights are too large",
            "use an earlier step of the run; a new run with a smaller --lr may avoid it",
        )


# --- text -------------------------------------------------------------------------------------------------------------------------------


class TextStream:
    """Turn token ids into text that is safe to show: unfinished characters and beginnings of stop strings are held back."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        # a token may be a single byte of an emoji, and "User:" may come as "Us" + "er:": what was shown cannot be taken back
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
        # the longest end of the text that a stop string begins with
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
    token_ids: list[int] = field(default_factory=list)  # an end token too, which `text` has nothing of
    prompt_token_ids: list[int] = field(default_factory=list)  # bos first
    logprobs: list[float] = field(default_factory=list)  # ln p of each token, in nats, as a loss is
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

    @torch.inference_mode()  # nothing is kept for a backward pass
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

        Every ln p made of them is a finite number; raise NotFiniteOutput if one would not be.
        """
        logits = self._read(history)  # (N, V)
        least, most = logits.aminmax(dim=-1)  # (N,): what lies further apart than fp32 reaches has no ln p either
        check_finite(most - least, self.engine)
        return logits

    def _read(self, history: Tensor) -> Tensor:
        if self.cache is not None and self.cache.length < self.engine.config.context_len:
            # (N, 1): the cache holds all the others
            return self.engine.next_logits(history[:, -1:], self.cache)
        window = self._newest(history)  # (N, T)
        same = bool((window == window[:1]).all())  # a prompt is read once for all its samples
        window = window[:1] if same else window
        self.cache = self.engine.new_cache(len(window))
        logits = self.engine.next_logits(window, self.cache)
        if same:
            self.cache.repeat(self.samples)  # from here on they differ
        return logits.expand(self.samples, -1)

    def _newest(self, history: Tensor) -> Tensor:
        """`history` where it fits the context, else bos and its newest three quarters of a context."""
        context = self.engine.config.context_len
        if history.shape[1] <= context:
            return history
        # Dropping one token at a time would be simpler, but every key holds its position: the whole window would be read anew for each
        # token. A quarter at once is read anew once in a quarter of a context. Texts begin with bos in training.
        start = torch.full((len(history), 1), BOS, dtype=history.dtype)
        return torch.cat((start, history[:, -(3 * context // 4) :]), dim=1)


def draws(
    model: GPT | Engine, prompt_ids: Sequence[int], config: SampleConfig, *, n: int, banned: Tensor
) -> Iterator[tuple[list[int], Tensor]]:
    """At each new position the token drawn for each of `n` samples, and ln p (N, V) there. Ids in `banned` are never drawn.

    A model on the CPU is read through a `Decoder`, made for this text where that is repaid; who writes many texts makes one and gives it.
    """
    # a generator for each sample: what it draws does not depend on how many others are written beside it
    generators = [torch.Generator().manual_seed(config.seed * 1_000_003 + i) for i in range(n)]
    # on the CPU, as logits are: samplers handle few numbers with many small operations, each of which a GPU would be slow to start; and
    # the same numbers are drawn on every device
    history = torch.tensor([list(prompt_ids)] * n)  # (N, T)
    reader = Reader(quickest(model, config.max_tokens) if isinstance(model, GPT) else model, n)
    for _ in range(config.max_tokens):
        logits = reader.read(history)  # (N, V)
        # drawn at temperature 0 too: a setting changes what a number leads to, never which number it is
        uniforms = [float(torch.rand((), generator=generator, dtype=torch.float64)) for generator in generators]
        written = history[:, len(prompt_ids) :]  # (N, T) without the prompt
        allowed = discourage(logits, written, presence=config.presence_penalty, frequency=config.frequency_penalty)
        drawn = choose(allowed.index_fill(1, banned, float("-inf")), history, config, uniforms)
        yield drawn, logits.log_softmax(-1)  # (N, V), of the logits as they were: what the model thinks, not what the settings make of it
        history = torch.cat((history, torch.tensor(drawn)[:, None]), dim=1)  # (N, T + 1)


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

    Control tokens that do not end a text are never drawn, nor is unk. Raise ValueError for an empty prompt.
    """
    if not prompt_ids:
        raise ValueError("the prompt has no tokens; begin it with bos")
    # a model that was never trained on <|user|> may still give it some probability, and a text must not forge the turns of a chat
    banned = torch.tensor(sorted((tokenizer.control_ids | {UNK}) - end_ids))
    texts = [TextStream(tokenizer, config.stop) for _ in range(n)]
    alive = [True] * n  # a sample dies with its finish reason
    for position, (drawn, logprobs) in enumerate(draws(model, prompt_ids, config, n=n, banned=banned)):
        own = logprobs.gather(1, torch.tensor(drawn)[:, None])[:, 0].tolist()
        for i, token in enumerate(drawn):
            if not alive[i]:
                continue  # it is read on with the others, which costs less than taking its row out
            ended = token in end_ids  # such a token ends the text and is no part of it
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
            sample.first_token_s = now  # reading the prompt and writing one token: the wait that a person feels
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
