"""Answers in OpenAI's shape: one or several choices, whole or as a stream of events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from positron_mini import __version__
from positron_mini.generate import Token
from positron_mini.web.engine import Job
from positron_mini.web.writing import Order, TextOffsets, chat_logprobs, text_logprobs, timings, usage

Event = dict[str, Any]


class Choice:
    """One of the texts of an answer, as far as it is written."""

    def __init__(self, order: Order, index: int) -> None:
        self.order, self.index = order, index
        self.tokenizer = order.served.speaker.tokenizer
        self.finish_reason = "length"
        self.offsets = TextOffsets(self.tokenizer)
        self.text = ""  # of a finished answer
        self.unsent: list[Token] = []  # tokens whose ln p has not been sent

    def add(self, token: Token) -> None:
        """Add the next token."""
        self.finish_reason = token.finish_reason or self.finish_reason
        if token.finish_reason != "stop" or token.id not in self.order.served.speaker.end_ids:
            self.unsent.append(token)  # the token that ends an answer is no part of its text

    def take_unsent(self) -> list[Token]:
        """Return the tokens whose ln p has not been sent, and count them as sent."""
        tokens, self.unsent = self.unsent, []
        return tokens


class Answer:
    """An answer written token by token: `n` choices for each order, those of the first order first."""

    kind = ""
    prefix = ""

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders = orders
        self.choices = [Choice(order, k * order.n + i) for k, order in enumerate(orders) for i in range(order.n)]
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": orders[0].served.id,
            "system_fingerprint": f"positron-mini-{__version__}-{orders[0].served.speaker.weights}",
        }

    def write(self, job: Job[Token]) -> Iterator[Token]:
        """Yield the tokens of all choices, each with the number of its choice. Runs in the engine's thread."""
        for k, order in enumerate(self.orders):
            for token in order.write(job):
                yield replace(token, index=k * order.n + token.index)

    def whole(self, tokens: Sequence[Token], submitted: float) -> Event:
        """The finished answer."""
        for token in tokens:
            self.choices[token.index].add(token)
        for choice in self.choices:
            choice.text = "".join(token.text for token in tokens if token.index == choice.index)
        choices = [self._choice(one, self.content(one), self.logprobs(one, one.take_unsent()), one.finish_reason) for one in self.choices]
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage(self.orders), **self._times(submitted)}

    async def events(self, tokens: AsyncIterator[Token], submitted: float, *, with_usage: bool) -> AsyncIterator[Event]:
        """Yield the answer in pieces. ln p of tokens whose text is held back is sent with that text."""
        none = {"usage": None} if with_usage else {}
        for choice in self.choices:
            for first in self.opening(choice):
                yield self._chunk(self._choice(choice, first, None, None), none)
        async for token in tokens:
            choice = self.choices[token.index]
            choice.add(token)
            if token.text:
                yield self._chunk(self._choice(choice, self.delta(token.text), self.logprobs(choice, choice.take_unsent()), None), none)
        for choice in self.choices:
            left = self.logprobs(choice, choice.take_unsent()) if choice.unsent else None
            last = self._times(submitted) if choice is self.choices[-1] else {}
            yield self._chunk(self._choice(choice, self.delta(""), left, choice.finish_reason), {**none, **last})
        if with_usage:
            yield {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage(self.orders)}

    @property
    def chunk_kind(self) -> str:
        """The `object` of an event."""
        return self.kind

    def opening(self, choice: Choice) -> list[Event]:
        """The events before the first token of a choice."""
        return []

    def content(self, choice: Choice) -> Event:
        """The text in the form of the finished answer."""
        raise NotImplementedError

    def delta(self, text: str) -> Event:
        """A part of the text in the form of an event."""
        raise NotImplementedError

    def logprobs(self, choice: Choice, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        raise NotImplementedError

    def _times(self, submitted: float) -> Event:
        return {"timings": timings(self.orders, submitted), "seed": self.orders[0].seed}

    def _choice(self, choice: Choice, part: Event, logprobs: Event | None, finish_reason: str | None) -> Event:
        return {"index": choice.index, **part, "logprobs": logprobs, "finish_reason": finish_reason}

    def _chunk(self, choice: Event, more: Event) -> Event:
        return {**self._head, "object": self.chunk_kind, "choices": [choice], **more}


class ChatAnswer(Answer):
    """The answer to a conversation."""

    kind, prefix = "chat.completion", "chatcmpl"

    @property
    def chunk_kind(self) -> str:
        """The `object` of an event."""
        return "chat.completion.chunk"

    def whole(self, tokens: Sequence[Token], submitted: float) -> Event:
        """The finished answer."""
        return {**super().whole(tokens, submitted), "dropped_messages": self.orders[0].prompt.dropped}

    def opening(self, choice: Choice) -> list[Event]:
        """The event that says who speaks."""
        return [{"delta": {"role": "assistant", "content": ""}}]  # a text, because clients concatenate what they receive

    def content(self, choice: Choice) -> Event:
        """The message."""
        return {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def delta(self, text: str) -> Event:
        """A part of the message."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, choice: Choice, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        return None if choice.order.top is None else chat_logprobs(choice.tokenizer, tokens)


class TextAnswer(Answer):
    """The continuation of each text, after the text itself if it is to be echoed."""

    kind, prefix = "text_completion", "cmpl"

    def opening(self, choice: Choice) -> list[Event]:
        """The event with the echoed prompt."""
        echo = self._echo(choice)
        return [self.delta(echo)] if echo else []

    def content(self, choice: Choice) -> Event:
        """The text."""
        return {"text": self._echo(choice) + choice.text}

    def delta(self, text: str) -> Event:
        """A part of the text."""
        return {"text": text}

    def logprobs(self, choice: Choice, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        top = choice.order.top
        return None if top is None else text_logprobs(choice.tokenizer, tokens, choice.offsets, top=top)

    def _echo(self, choice: Choice) -> str:
        return choice.tokenizer.decode(choice.order.prompt.ids) if choice.order.echo else ""
