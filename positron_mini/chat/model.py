"""A loaded model, and the two ways to use it from Python: continue a text, answer a conversation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from positron_mini.config import ModelConfig, SampleConfig, Weights, from_names
from positron_mini.errors import UsageError
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import EOS, Tokenizer

if TYPE_CHECKING:
    from positron_mini.fast.decoder import Decoder
    from positron_mini.generate import Generation
    from positron_mini.model import GPT
    from positron_mini.store.checkpoint import Checkpoint

CHAT_SETTINGS = SampleConfig(max_tokens=30, temperature=0.3, top_p=0.8)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model in memory with its tokenizer. `pm.load` makes one; a model of your own needs a name, the model and a tokenizer.

    `name` says where it came from: the checkpoint's folder. `is_chat`: it was taught to answer. `end_ids` are the tokens that end a text.
    `weights` int8: tokens are written with weights rounded to 8 bits; scores, exports and training always use `gpt` as it is.
    """

    name: str
    gpt: GPT = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    is_chat: bool = False
    end_ids: frozenset[int] = frozenset({EOS})
    weights: Weights = "f32"

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self.gpt.config

    @property
    def context_len(self) -> int:
        """Tokens that the model sees at once."""
        return self.config.context_len

    def writer(self, tokens: int) -> GPT | Decoder:
        """What writes `tokens` tokens soonest with these weights. It is made of `gpt` as it is now."""
        from positron_mini.fast.decoder import quickest

        return quickest(self.gpt, tokens, self.weights)


def read_model(checkpoint: Checkpoint, weights: Weights = "f32") -> Model:
    """The model of a checkpoint, on the CPU, which is the fastest place for one small stream. Errors: CheckpointError.

    It writes with f32 weights, with a logged warning, where 8-bit ones cannot be had.
    """
    from positron_mini.store.checkpoint import load_model

    gpt, ends = load_model(checkpoint), checkpoint.end_ids
    return Model(str(checkpoint.folder), gpt, checkpoint.tokenizer, checkpoint.is_chat, ends, usable(weights, gpt))


def usable(weights: Weights, gpt: GPT) -> Weights:
    """`weights`, or f32 where 8-bit ones cannot be had for this model; a warning then says why."""
    from positron_mini.fast.decoder import why_not_int8

    if weights == "int8" and (why := why_not_int8(gpt)):
        log.warning("%s: writing with f32 weights, %s", gpt.name, why)
        return "f32"
    return weights


def load(path: str | Path | None = None, *, weights: Weights = "f32") -> Model:
    """The model in a checkpoint: a step folder, a run folder, `runs/x/latest`, or `latest.pt` as older commands spell it.

    Without a path it is that of the newest finished run in `runs`, as for `positron generate`. With `weights` int8 its tokens are written
    with weights rounded to 8 bits. Where a damaged step is passed over, or 8-bit weights cannot be had, a warning is logged. Errors:
    CheckpointError, whose `hint` names the runs there are; UsageError for other weights.
    """
    from positron_mini.store.find import find_checkpoint, newest_checkpoint, read_found

    if weights not in get_args(Weights):
        raise UsageError(f"weights cannot be {weights!r}, they are {' or '.join(get_args(Weights))}", 'weights="int8"')
    find = partial(newest_checkpoint, talks=False) if path is None else partial(find_checkpoint, path)
    return read_found(partial(find, say=log.warning), partial(read_model, weights=weights))


def generate(model: Model, prompt: str | Sequence[int], **settings: Any) -> Generation:
    """Continue `prompt`: a text, read as bos and its tokens, or ids that begin with bos.

    `settings` are the fields of SampleConfig: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
    frequency_penalty, seed, stop. The same seed gives the same text. Of a prompt longer than the context, bos and the newest three
    quarters of a context are read. Errors: UsageError for an unknown setting or an impossible value, NotFiniteOutput.
    """
    return _written(model, prompt, from_names(SampleConfig, settings))


def chat(model: Model, messages: str | Sequence[Message | Mapping[str, str]], **settings: Any) -> Generation:
    """Answer a question, or a conversation: messages such as {"role": "user", "content": "Hello"}, the oldest first.

    `settings` as for `generate`; max_tokens is 30, temperature 0.3 and top_p 0.8 unless given, and at most as many tokens are written as
    the context has left. Errors: UsageError for a base model and for a conversation that fills the context; DataError for a wrong role.
    """
    config = from_names(SampleConfig, {**asdict(CHAT_SETTINGS), **settings})
    if not model.is_chat:
        raise UsageError(
            f"{model.name} is a base model, which was not taught to answer", "positron quicksft teaches one; generate() continues a text"
        )
    turns = [Message("user", messages)] if isinstance(messages, str) else [_message(each) for each in messages]
    ids = encode_chat(model.tokenizer, turns, add_generation_prompt=True).ids
    room = model.context_len - len(ids)
    if room < 1:
        raise UsageError(f"the conversation has {len(ids):,} tokens, the context {model.context_len:,}", "leave the oldest messages out")
    return _written(model, ids, replace(config, max_tokens=min(config.max_tokens, room)))


def _message(given: Message | Mapping[str, str]) -> Message:
    if isinstance(given, Message):
        return given
    if set(given) != {"role", "content"}:
        raise UsageError(f"a message has role and content, not {', '.join(given) or 'nothing'}", '{"role": "user", "content": "Hello"}')
    return Message(given["role"], given["content"])  # type: ignore[arg-type]  # Message checks the role


def _written(model: Model, prompt: str | Sequence[int], config: SampleConfig) -> Generation:
    from positron_mini.generate import generate as write

    return write(model.writer(config.max_tokens), model.tokenizer, prompt, config, end_ids=model.end_ids)[0]
