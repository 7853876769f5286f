"""A conversation with a checkpoint: what the model reads, answers and remembers. No terminal here: that is `cli/repl`.

A chat model reads the system text and the newest turns that fit its context, in the one chat format. A base model reads every line by
itself and continues it as a story.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from positron_mini import files
from positron_mini.chat.model import CHAT_SETTINGS, Model
from positron_mini.config import SampleConfig
from positron_mini.errors import DataError, PositronError, UsageError
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS

FORMAT = 1
MAX_FILE_BYTES = 16 << 20
RIVALS = 4
MAX_EXPONENT = 709.0  # larger arguments of exp overflow


# --- what is said -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A question and the model's answer. `is_complete`: the model ended the answer itself."""

    question: str
    answer: str
    is_complete: bool = True


@dataclass(frozen=True)
class ChatPrompt:
    """Input of the model for a question: ids from bos on. The `dropped` oldest turns did not fit; there is `room` for so many new tokens.
    """

    ids: list[int]
    dropped: int
    room: int


@dataclass
class Answer:
    """An answer, complete or not: drawn tokens, their text, ln p of each under the model itself, seconds of wall-clock."""

    question: str
    prompt: ChatPrompt
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "interrupted"] = "interrupted"
    first_token_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def tok_per_s(self) -> float:
        """Tokens per second, including prefill."""
        return len(self.token_ids) / max(self.elapsed_s, 1e-9)

    @property
    def perplexity(self) -> float:
        """exp of the mean -ln p of the tokens: the number of equally likely choices at each token. 1 for an empty answer.

        Infinity if a float cannot hold it: weights can be so large that a drawn token has ln p -10,000.
        """
        nats = -math.fsum(self.logprobs) / max(len(self.logprobs), 1)
        return math.exp(nats) if nats < MAX_EXPONENT else math.inf


@dataclass(frozen=True)
class TokenChoice:
    """One token of an answer, its probability under the model itself, and its likeliest rivals, each with its own."""

    piece: str
    probability: float
    rivals: tuple[tuple[str, float], ...]


class ChatSession:
    """A speaker, its settings, an optional system text and the turns so far. An error leaves all of them as they were."""

    def __init__(self, speaker: Model, settings: SampleConfig = CHAT_SETTINGS) -> None:
        self.speaker, self.settings = speaker, settings
        self.system: str | None = None
        self.turns: list[Turn] = []
        self.last: Answer | None = None
        self._attempt = 0

    def prompt(self, question: str, turns: list[Turn] | None = None) -> ChatPrompt:
        """Input for `question` after `turns` (default: all so far); a quarter of the context, or max_tokens if less, is left to answer.

        Errors: UsageError when the question alone does not fit.
        """
        speaker, wanted = self.speaker, self.settings.max_tokens
        if not speaker.is_chat:
            return ChatPrompt([BOS, *speaker.tokenizer.encode(question)], 0, wanted)
        turns = self.turns if turns is None else turns
        limit = speaker.context_len - max(1, min(wanted, speaker.context_len // 4))
        system = [Message("system", self.system)] if self.system is not None else []
        size = len(encode_chat(speaker.tokenizer, [*system, Message("user", question)], add_generation_prompt=True).ids)
        if size > limit:
            raise UsageError(
                f"the question{' and the system text have' if system else ' has'} {size:,} tokens; "
                f"this model reads at most {limit:,} and writes the rest of its {speaker.context_len:,}",
                "ask in fewer words" + (", or remove the system text: /system none" if system else ""),
            )
        kept: list[Message] = []
        dropped = len(turns)
        for turn in reversed(turns):
            messages = [Message("user", turn.question), Message("assistant", turn.answer)]
            size += len(encode_chat(speaker.tokenizer, messages).ids) - 1  # bos is counted already
            if size > limit:
                break
            kept, dropped = messages + kept, dropped - 1
        ids = encode_chat(speaker.tokenizer, [*system, *kept, Message("user", question)], add_generation_prompt=True).ids
        return ChatPrompt(ids, dropped, min(wanted, speaker.context_len - len(ids)))

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer in pieces of text as they are drawn. Closing the iterator makes a turn of what was drawn. Errors: as `prompt`.
        """
        prompt, self._attempt = self.prompt(question), 0
        return self._answer(question, prompt)

    def retry(self) -> Generator[str, None, None]:
        """Yield another answer to the last question, which replaces the first. Errors: UsageError without a question."""
        if not self.turns:
            raise UsageError("there is no question to ask again", "type a question first")
        question = self.turns[-1].question
        prompt = self.prompt(question, self.turns[:-1])
        self._attempt += 1
        return self._answer(question, prompt, replaces=1)

    def _answer(self, question: str, prompt: ChatPrompt, replaces: int = 0) -> Generator[str, None, None]:
        from positron_mini.generate import stream

        answer, speaker = Answer(question, prompt), self.speaker
        config = replace(self.settings, max_tokens=prompt.room, seed=self.settings.seed + self._attempt)
        began = time.perf_counter()
        try:
            for token in stream(speaker.writer(config.max_tokens), speaker.tokenizer, prompt.ids, config, end_ids=speaker.end_ids):
                answer.elapsed_s = time.perf_counter() - began
                answer.first_token_s = answer.first_token_s or answer.elapsed_s
                answer.token_ids.append(token.id)
                answer.logprobs.append(token.logprob)
                answer.text += token.text
                answer.finish_reason = token.finish_reason or "interrupted"
                if token.text:
                    yield token.text
        finally:
            if answer.token_ids:  # stopped before the first token: the turns stay as they were
                kept = self.turns[: len(self.turns) - replaces]
                self.turns = [*kept, Turn(question, answer.text, answer.finish_reason == "stop")]
                self.last = answer

    def undo(self) -> Turn:
        """Forget the last turn and return it. Errors: UsageError when there is none."""
        if not self.turns:
            raise UsageError("there is no turn to take back", "type a question first")
        self.last = None
        return self.turns.pop()

    def clear(self) -> None:
        """Forget all turns; system text and settings stay."""
        self.turns, self.last = [], None

    def switch(self, speaker: Model) -> None:
        """Go on with another speaker, who will read the same turns."""
        self.speaker, self.last = speaker, None

    def twin(self, speaker: Model) -> ChatSession:
        """A session with another speaker and the turns before the last question."""
        other = ChatSession(speaker, self.settings)
        other.system, other.turns, other._attempt = self.system, self.turns[:-1], self._attempt
        return other

    def meter(self) -> str:
        """How full the context was after the last answer, and how many turns no longer fit, in words."""
        if self.last is None:
            return f"context: 0 of {self.speaker.context_len:,} tokens"
        prompt, written = self.last.prompt, len(self.last.token_ids)
        used = len(prompt.ids) + written
        text = f"context: {min(used, self.speaker.context_len):,} of {self.speaker.context_len:,} tokens"
        if not self.speaker.is_chat:
            over = ", the oldest of the story dropped out" if used > self.speaker.context_len else ""
            return f"{text}{over}; every line begins anew"
        turns = f"{len(self.turns):,} turn{'s' if len(self.turns) != 1 else ''}"
        if prompt.dropped == 0:
            return f"{text}, {turns}"
        return f"{text}, {turns}; the oldest {f'{prompt.dropped:,} ' if prompt.dropped > 1 else ''}dropped out"

    def choices(self) -> Iterator[TokenChoice]:
        """Each token of the last answer with its rivals, recomputed as it was drawn. Errors: UsageError without an answer."""
        import torch

        from positron_mini.generate import Reader

        answer, pieces = self.last, self.speaker.tokenizer.piece
        if answer is None:
            raise UsageError("there is no answer to explain", "type a question first")
        reader = Reader(self.speaker.writer(len(answer.token_ids)), 1)
        history = torch.tensor([answer.prompt.ids])  # (1, T)
        for token in answer.token_ids:
            probabilities = reader.read(history)[0].softmax(-1)  # (V,)
            best = probabilities.topk(min(RIVALS + 1, len(probabilities)))
            rivals = [(pieces(i), p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True) if i != token]
            yield TokenChoice(pieces(token), float(probabilities[token]), tuple(rivals[:RIVALS]))
            history = torch.cat((history, torch.tensor([[token]])), dim=1)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. Errors: DataError when another kind of file has that name, PositronError for disk errors."""
        if path.exists():
            try:
                _record(path)
            except PositronError as error:
                raise DataError(f"{path}: exists and is not a saved conversation", f"/save {path.stem}-chat.json") from error
        settings = {**dataclasses.asdict(self.settings), "stop": list(self.settings.stop)}
        turns = [dataclasses.asdict(turn) for turn in self.turns]
        files.write_json(
            path, {"format": FORMAT, "checkpoint": self.speaker.name, "system": self.system, "settings": settings, "turns": turns}
        )

    def load(self, path: Path) -> str:
        """Restore turns, system text and settings from a file; return the name of the checkpoint of that conversation.

        Errors: DataError naming the fault in the file.
        """
        saved = _record(path)
        system, settings, turns = saved.get("system"), saved.get("settings"), saved["turns"]
        if not (system is None or _is_text(system)) or not isinstance(settings, dict) or not _is_text(saved.get("checkpoint")):
            raise DataError(f"{path}: system, settings or checkpoint is damaged", "load another file")
        for number, turn in enumerate(turns, 1):
            fits = isinstance(turn, dict) and turn.keys() == {"question", "answer", "is_complete"}
            if not (fits and _is_text(turn["question"]) and _is_text(turn["answer"]) and isinstance(turn["is_complete"], bool)):
                raise DataError(f"{path}: turn {number:,} is damaged", "it needs question, answer (texts) and is_complete (true or false)")
        loaded = _recorded_settings(path, settings)
        self.system, self.settings, self.turns, self.last = system, loaded, [Turn(**turn) for turn in turns], None
        return str(saved["checkpoint"])


# --- settings and files -----------------------------------------------------------------------------------------------------------------


def with_settings(settings: SampleConfig, changes: Mapping[str, str]) -> SampleConfig:
    """`settings` with some of them changed, each value given as text. Errors: UsageError for an unknown name or an impossible value."""
    values: dict[str, Any] = {}
    for given, text in changes.items():
        name = given.replace("-", "_")
        if name not in dataclasses.asdict(settings):
            near = get_close_matches(name, dataclasses.asdict(settings), 1) or ["temperature"]
            known = ", ".join(dataclasses.asdict(settings))
            raise UsageError(f"there is no setting {given!r}; there are {known}", f"/set {near[0]}={getattr(settings, near[0])}")
        now = getattr(settings, name)
        try:
            values[name] = ((text,) if text else ()) if isinstance(now, tuple) else type(now)(text)
            replace(settings, **{name: values[name]})
        except UsageError as error:
            raise UsageError(error.message.removeprefix("--"), f"/set {name}={now}") from error
        except ValueError:
            wanted = "a whole number" if isinstance(now, int) else "a number"
            raise UsageError(f"{name} cannot be {text!r}, it takes {wanted}", f"/set {name}={now}") from None
    return replace(settings, **values)


def _recorded_settings(path: Path, recorded: dict[str, Any]) -> SampleConfig:
    for name, value in recorded.items():
        default = getattr(CHAT_SETTINGS, name, None)
        kinds = {int: (int,), float: (int, float), tuple: (list,)}.get(type(default), ())
        if type(value) not in kinds or (isinstance(value, list) and not all(_is_text(item) for item in value)):
            raise DataError(f"{path}: the setting {name!r:.40} is damaged", "load another file")
    values = {name: type(getattr(CHAT_SETTINGS, name))(value) for name, value in recorded.items()}
    try:
        return replace(CHAT_SETTINGS, **values)
    except UsageError as error:
        raise DataError(f"{path}: {error.message.removeprefix('--')}", "load another file") from error


def _record(path: Path) -> dict[str, Any]:
    """Content of a saved conversation, its structure checked."""
    if not path.is_file():
        raise DataError(f"{path}: no such file", "name a file that /save wrote")
    try:
        record = files.read_json(path, MAX_FILE_BYTES)
    except PositronError as error:
        raise DataError(error.message, "name a file that /save wrote") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("turns"), list):
        raise DataError(f"{path}: not a conversation of format {FORMAT}", "name a file that /save wrote")
    return record


def _is_text(value: object) -> bool:
    """Whether a JSON value is a string that can be encoded: a lone surrogate, which JSON allows, cannot."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
