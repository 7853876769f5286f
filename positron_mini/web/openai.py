"""The routes that OpenAI's clients know, and the few of llama.cpp's that belong to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from positron_mini.errors import PositronError
from positron_mini.files import json_line
from positron_mini.generate import Token
from positron_mini.text.tokenizer import BOS
from positron_mini.web import schemas
from positron_mini.web.answers import Answer, ChatAnswer, Event, TextAnswer
from positron_mini.web.engine import Job
from positron_mini.web.failures import failure
from positron_mini.web.guard import report
from positron_mini.web.prompts import chat_prompt, check_ids, text_prompts
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
from positron_mini.web.writing import Order, with_seed

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {}}}  # each event's data is a chunk as JSON, or [DONE]


def openai_routes(state: ServerState) -> APIRouter:
    """The routes of the API, answered by `state`."""
    router = APIRouter(responses=ERRORS)

    @router.post("/v1/chat/completions", response_model=schemas.ChatCompletion, responses={200: {"content": STREAM}})
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        body, served = with_seed(body), await find_model(state, body.model)
        prompt = await asyncio.to_thread(chat_prompt, served, body, state.drops_oldest)
        return await _answer(state, ChatAnswer([Order.of_chat(served, prompt, body)]), body, request)

    @router.post("/v1/completions", response_model=schemas.TextCompletion, responses={200: {"content": STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        if body.max_tokens == 0 and not body.echo:
            raise RequestError("max_tokens 0 needs echo: true, or nothing is left to answer", param="max_tokens")
        body, served = with_seed(body), await find_model(state, body.model)
        prompts = await asyncio.to_thread(text_prompts, served, body, state.drops_oldest)
        return await _answer(state, TextAnswer([Order.of_text(served, prompt, body) for prompt in prompts]), body, request)

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
    """The id of an available model, the first one for None. An unknown name touches no file. Errors: RequestError 404."""
    ids = state.models.ids()
    if id is None and ids:
        return ids[0]
    if id is None or not state.models.knows(id):
        what = f"there is no model {id!r:.80}; GET /v1/models lists them" if ids else "there is no trained model yet"
        raise RequestError(what, param="model", code="model_not_found", status=404)
    return id


async def find_model(state: ServerState, id: str | None) -> Served:
    """The model `id`; if it is not in memory, the engine reads it from its folder. Errors: those of `known_id`, Busy, CheckpointError."""
    name = known_id(state, id)
    served = state.models.in_memory(name)
    return served if served is not None else await state.engine.run(lambda: state.models.load(name))


def _card(state: ServerState, id: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": state.models.created(id), "owned_by": "positron-mini"}


# --- sending ----------------------------------------------------------------------------------------------------------------------------


async def _answer(state: ServerState, answer: Answer, body: schemas.SamplingRequest, request: Request) -> Response:
    """The response with `answer`, written when its turn comes in the engine. Errors: Busy, Stopped."""
    job = state.engine.submit(answer.write)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(job, lambda tokens: answer.events(tokens, job.submitted, with_usage=with_usage))
    async with stopped_with(request.receive, job):
        tokens = [token async for token in job]
    return JSONResponse(answer.whole(tokens, job.submitted))


@contextlib.asynccontextmanager
async def stopped_with(receive: Receive, job: Job[Any]) -> AsyncIterator[None]:
    """A context that cancels the job as soon as the client hangs up, and at its end in any case."""

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
    """Server-sent events made of a job's results. An error before the first event is answered as usual, a later one is an event."""

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
                last = sse(failure(error).body)
            except Exception as error:
                report(error)
                last = sse(error_body("the server met an unexpected error; its log says where", "server_error", code="internal_error"))
            await send({"type": "http.response.body", "body": last, "more_body": False})


def sse(event: Event) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(event, is_compact=True)}\n\n".encode()
