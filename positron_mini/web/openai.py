"""The routes that OpenAI's clients know, and the few of llama.cpp's that belong to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from positron_mini import __version__
from positron_mini.errors import PositronError
from positron_mini.generate import Token
from positron_mini.tokenizer import BOS
from positron_mini.web import schemas
from positron_mini.web.engine import Job
from positron_mini.web.guard import report
from positron_mini.web.prompts import chat_prompt, check_ids, text_prompt
from positron_mini.web.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    RequestError,
    TokenizeRequest,
    error_body,
)
from positron_mini.web.state import Served, ServerState
from positron_mini.web.writing import Order, TextOffsets, chat_logprobs, text_logprobs

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
Event = dict[str, Any]


def openai_routes(state: ServerState) -> APIRouter:
    """The routes of the API, answered by `state`."""
    router = APIRouter(responses=ERRORS)

    @router.post("/v1/chat/completions", response_model=schemas.ChatCompletion, responses={200: {"content": STREAM}})
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        served = await find_model(state, body.model)
        prompt = await asyncio.to_thread(chat_prompt, served, body)
        return await _answer(state, ChatAnswer(Order.of_chat(served, prompt, body)), body, request)

    @router.post("/v1/completions", response_model=schemas.TextCompletion, responses={200: {"content": STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        if body.max_tokens == 0 and not body.echo:
            raise RequestError("max_tokens 0 needs echo: true, or nothing is left to answer", param="max_tokens")
        served = await find_model(state, body.model)
        prompt = await asyncio.to_thread(text_prompt, served, body)
        return await _answer(state, TextAnswer(Order.of_text(served, prompt, body)), body, request)

    @router.get("/v1/models", response_model=schemas.ModelList)
    async def models() -> Any:
        """The models that may be asked, the default one first."""
        ids = await asyncio.to_thread(state.models.refresh)
        return {"object": "list", "data": [_card(state, id) for id in ids]}

    @router.get("/v1/models/{id}", response_model=schemas.ModelCard)
    async def model(id: str) -> Any:
        """One model that may be asked."""
        return _card(state, known_id(state, id))

    @router.get("/health", response_model=schemas.Health)
    async def health() -> Any:
        """Whether the server answers; needs no API key."""
        return {"status": "ok", "running": state.engine.running, "waiting": state.engine.waiting}

    @router.post("/tokenize", response_model=schemas.TokenizeResponse)
    async def tokenize(body: TokenizeRequest) -> Any:
        """The ids of a text."""
        tokenizer = (await find_model(state, body.model)).speaker.tokenizer
        ids = await asyncio.to_thread(tokenizer.encode, body.content)
        ids = [BOS, *ids] if body.add_special else ids
        return {"tokens": [{"id": i, "piece": tokenizer.piece(i)} for i in ids] if body.with_pieces else ids, "count": len(ids)}

    @router.post("/detokenize", response_model=schemas.DetokenizeResponse)
    async def detokenize(body: DetokenizeRequest) -> Any:
        """The text of ids."""
        tokenizer = (await find_model(state, body.model)).speaker.tokenizer
        check_ids(tokenizer, body.tokens, "tokens")
        return {"content": tokenizer.decode(body.tokens)}

    return router


def known_id(state: ServerState, id: str | None) -> str:
    """The id of a model that may be asked for, the first one for None. Errors: RequestError 404; an unknown name touches no file."""
    ids = state.models.ids()
    if id is None and ids:
        return ids[0]
    if id is None or not state.models.knows(id):
        what = f"there is no model {id!r:.80}; GET /v1/models lists them" if ids else "there is no trained model yet"
        raise RequestError(what, param="model", code="model_not_found", status=404)
    return id


async def find_model(state: ServerState, id: str | None) -> Served:
    """The model `id`, read from its folder if it has to be, when the engine's turn comes. Errors: as `known_id`, Busy, CheckpointError."""
    name = known_id(state, id)
    served = state.models.in_memory(name)
    return served if served is not None else await state.engine.run(lambda: state.models.load(name))


def _card(state: ServerState, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": state.models.created(id), "owned_by": "positron-mini"}


# --- answers ----------------------------------------------------------------------------------------------------------------------------


class Answer:
    """An answer that grows token by token: as one object at the end, or as events on the way."""

    kind = ""
    prefix = ""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.tokenizer = order.served.speaker.tokenizer
        self.finish_reason = "length"
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": order.served.id,
            "system_fingerprint": f"positron-mini-{__version__}",
        }
        self._unsent: list[Token] = []

    def whole(self, tokens: list[Token], submitted: float) -> Event:
        """The finished answer."""
        for token in tokens:
            self._note(token)
        text = "".join(token.text for token in tokens)
        choice = {"index": 0, **self.content(text), "logprobs": self.logprobs(self._unsent), "finish_reason": self.finish_reason}
        times = {"usage": self.order.usage(), "timings": self.order.timings(submitted), "seed": self.order.config.seed}
        return {**self._head, "object": self.kind, "choices": [choice], **times}

    async def events(self, tokens: AsyncIterator[Token], submitted: float, *, with_usage: bool) -> AsyncIterator[Event]:
        """The answer in pieces. ln p of tokens whose text is held back comes with the text."""
        usage = {"usage": None} if with_usage else {}
        for first in self.opening():
            yield self._chunk(first, None, None, usage)
        async for token in tokens:
            self._note(token)
            if token.text:
                yield self._chunk(self.delta(token.text), self._take_logprobs(), None, usage)
        left = self._take_logprobs() if self._unsent else None
        times = {"timings": self.order.timings(submitted), "seed": self.order.config.seed}
        yield self._chunk(self.delta(""), left, self.finish_reason, {**usage, **times})
        if with_usage:
            yield {**self._head, "object": self.chunk_kind, "choices": [], "usage": self.order.usage()}

    @property
    def chunk_kind(self) -> str:
        """The `object` of an event."""
        return self.kind

    def opening(self) -> list[Event]:
        """What an event says before the first token."""
        return []

    def content(self, text: str) -> Event:
        """The text as it stands in the finished answer."""
        raise NotImplementedError

    def delta(self, text: str) -> Event:
        """A part of the text as it stands in an event."""
        raise NotImplementedError

    def logprobs(self, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        raise NotImplementedError

    def _note(self, token: Token) -> None:
        self.finish_reason = token.finish_reason or self.finish_reason
        if token.finish_reason != "stop" or token.id not in self.order.served.speaker.end_ids:
            self._unsent.append(token)  # the token that ends an answer is no part of its text

    def _take_logprobs(self) -> Event | None:
        tokens, self._unsent = self._unsent, []
        return self.logprobs(tokens)

    def _chunk(self, part: Event, logprobs: Event | None, finish_reason: str | None, more: Event) -> Event:
        choice = {"index": 0, **part, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": self.chunk_kind, "choices": [choice], **more}


class ChatAnswer(Answer):
    """The answer to a conversation."""

    kind, prefix = "chat.completion", "chatcmpl"

    @property
    def chunk_kind(self) -> str:
        """The `object` of an event."""
        return "chat.completion.chunk"

    def whole(self, tokens: list[Token], submitted: float) -> Event:
        """The finished answer."""
        return {**super().whole(tokens, submitted), "dropped_messages": self.order.prompt.dropped}

    def opening(self) -> list[Event]:
        """The event that says who speaks."""
        return [{"delta": {"role": "assistant", "content": None}}]

    def content(self, text: str) -> Event:
        """The message."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> Event:
        """A part of the message."""
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        return None if self.order.top is None else chat_logprobs(self.tokenizer, tokens)


class TextAnswer(Answer):
    """The continuation of a text, after the text itself if it is to be echoed."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._offsets = TextOffsets(self.tokenizer)
        self._echo = self.tokenizer.decode(order.prompt.ids) if order.echo else ""

    def opening(self) -> list[Event]:
        """The event with the echoed prompt."""
        return [self.delta(self._echo)] if self._echo else []

    def content(self, text: str) -> Event:
        """The text."""
        return {"text": self._echo + text}

    def delta(self, text: str) -> Event:
        """A part of the text."""
        return {"text": text}

    def logprobs(self, tokens: list[Token]) -> Event | None:
        """ln p of some tokens, None where they were not asked for."""
        top = self.order.top
        return None if top is None else text_logprobs(self.tokenizer, tokens, self._offsets, top=top)


# --- sending ----------------------------------------------------------------------------------------------------------------------------


async def _answer(state: ServerState, answer: Answer, body: schemas.SamplingRequest, request: Request) -> Response:
    """The response with `answer`, whose writing begins when the engine's turn comes. Errors: Busy, Stopped."""
    job = state.engine.submit(answer.order.write)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(job, lambda tokens: answer.events(tokens, job.submitted, with_usage=with_usage))
    async with stopped_with(request.receive, job):
        tokens = [token async for token in job]
    return JSONResponse(answer.whole(tokens, job.submitted))


@contextlib.asynccontextmanager
async def stopped_with(receive: Receive, job: Job[Any]) -> AsyncIterator[None]:
    """Within it, the job is cancelled as soon as the client hangs up; after it, in any case."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        job.cancel()


class EventStream(Response):
    """Server-sent events made of a job's results. An error before the first one is answered like any other, a later one is an event."""

    media_type = "text/event-stream"

    def __init__(self, job: Job[Token], events: Callable[[AsyncIterator[Token]], AsyncIterator[Event]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._job, self._events = job, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        async with stopped_with(receive, self._job):
            await self._job.first()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self._events(aiter(self._job)):
                    await send({"type": "http.response.body", "body": sse(event), "more_body": True})
                last = b"data: [DONE]\n\n"
            except PositronError as error:
                last = sse(error_body(error.message, "server_error", code="stopped"))
            except Exception as error:
                report(error)
                last = sse(error_body("the server met an unexpected error; its log says where", "server_error", code="internal_error"))
            await send({"type": "http.response.body", "body": last, "more_body": False})


def sse(event: Event) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
