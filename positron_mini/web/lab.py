"""The routes of the lab page: views into a model, and the files of the runs, in answers of bounded size."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import FailFast, Field

from positron_mini.chat.conversations import read_conversations
from positron_mini.errors import DataError
from positron_mini.evaluate import lens
from positron_mini.store.choice import in_words, newest_base, outdated
from positron_mini.store.curve import read_reference, reference_names
from positron_mini.store.run_folder import RunFolder
from positron_mini.store.run_logs import log_path, read_log
from positron_mini.store.run_state import look as look_at_run
from positron_mini.store.steps import step_number
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS, UNK, Tokenizer
from positron_mini.web.engine import Job
from positron_mini.web.openai import ERRORS, find_model, stopped_with
from positron_mini.web.prompts import check_ids
from positron_mini.web.run_views import CurveChecks, run_facts
from positron_mini.web.schemas import Body, RequestError, Text, TokenId
from positron_mini.web.state import Served, ServerState
from positron_mini.web.writing import interruptible

MAX_CHARACTERS = 8_000
MAX_TOP = 500
MAX_WEIGHTS = 1 << 19  # attention weights in one answer: 64 heads over 90 tokens
MAX_LENS_TOKENS = 128

R = TypeVar("R")


class AsciiJSON(JSONResponse):
    """JSON in ASCII: a run's files may hold halves of surrogate pairs, which UTF-8 cannot carry."""

    def render(self, content: Any) -> bytes:
        """The bytes of the answer. Raise ValueError for a number that is not finite."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


# --- requests ---------------------------------------------------------------------------------------------------------------------------


class ModelAsk(Body):
    """A model, by an id of GET /lab/api/models."""

    model: Annotated[str, Field(max_length=256)]


class TextAsk(ModelAsk):
    """A text for a model to read, bos first."""

    text: Annotated[Text, Field(max_length=MAX_CHARACTERS)]


class LensAsk(TextAsk):
    """The same, and how many guesses to give at each place."""

    k: Annotated[int, Field(ge=1, le=10)] = 5


class NextAsk(TextAsk):
    """A text, the tokens chosen after it, and how many of the likeliest next ones to describe. `as_question`: put it to a chat model."""

    then: Annotated[list[TokenId], FailFast(), Field(max_length=2_048)] = []
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 200
    as_question: bool = False


class PiecesAsk(ModelAsk):
    """Ids of tokens to describe."""

    ids: Annotated[list[TokenId], FailFast(), Field(max_length=MAX_TOP)]


class MaskAsk(ModelAsk):
    """A line of a JSONL file."""

    row: Annotated[Text, Field(max_length=MAX_CHARACTERS)]


# --- routes -----------------------------------------------------------------------------------------------------------------------------


def lab_routes(state: ServerState) -> APIRouter:
    """The routes under /lab/api."""
    router = APIRouter(prefix="/lab/api", tags=["lab"], default_response_class=AsciiJSON, responses=ERRORS)
    _model_routes(router, state)
    _run_routes(router, state)
    return router


def _model_routes(router: APIRouter, state: ServerState) -> None:
    async def look(ask: ModelAsk, request: Request, view: Callable[[Served], R]) -> R:
        """What `view` makes of the model, in the engine's thread when its turn comes. A client that hangs up leaves the queue."""
        served = await find_model(state, ask.model)

        def work(job: Job[R]) -> list[R]:
            with interruptible(served.speaker.gpt, job.check):
                return [view(served)]

        job = state.engine.submit(work)
        async with stopped_with(request.receive, job):
            (answer,) = [result async for result in job]
        return answer

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The models that may be looked into, the default one first, with every saved step of every run."""
        return {"models": await asyncio.to_thread(_model_list, state)}

    @router.post("/model")
    async def model(ask: ModelAsk, request: Request) -> dict[str, Any]:
        """What a model is: shape, vocabulary, which tokens end a text and which are never drawn."""
        return await look(ask, request, _model_facts)

    @router.post("/tokens")
    async def tokens(ask: TextAsk, request: Request) -> dict[str, Any]:
        """The tokens of a text, without bos."""
        return await look(ask, request, lambda served: {"tokens": _described(served, served.speaker.tokenizer.encode(ask.text))})

    @router.post("/pieces")
    async def pieces(ask: PiecesAsk, request: Request) -> dict[str, Any]:
        """The tokens behind ids."""
        return await look(ask, request, lambda served: _pieces(served, ask.ids))

    @router.post("/next")
    async def next_token(ask: NextAsk, request: Request) -> dict[str, Any]:
        """The logits of every token that may come next, as base64 of little-endian fp32, and a description of the likeliest."""
        return await look(ask, request, lambda served: _next(served, ask))

    @router.post("/surprise")
    async def surprise(ask: TextAsk, request: Request) -> dict[str, Any]:
        """The tokens of a text with -ln p of each, in nats."""
        return await look(ask, request, lambda served: _surprise(served, ask.text))

    @router.post("/attention")
    async def attention(ask: TextAsk, request: Request) -> dict[str, Any]:
        """The attention weights (layers, heads, T, T) of a text, bos first, as base64 of little-endian fp32."""
        return await look(ask, request, lambda served: _attention(served, ask.text))

    @router.post("/logit_lens")
    async def logit_lens(ask: LensAsk, request: Request) -> dict[str, Any]:
        """The likeliest next tokens after each token of a text and each layer, the embedding first."""
        return await look(ask, request, lambda served: _logit_lens(served, ask))

    @router.post("/mask")
    async def mask(ask: MaskAsk, request: Request) -> dict[str, Any]:
        """The tokens of a line of fine-tuning data, and which of them are learned."""
        return await look(ask, request, lambda served: _mask(served.speaker.tokenizer, ask.row))


def _run_routes(router: APIRouter, state: ServerState) -> None:
    curves = CurveChecks()

    def run_called(name: str) -> RunFolder:
        run = state.models.runs().get(name)
        if run is None:
            raise RequestError(f"there is no run {name!r:.80}", param="name", code="run_not_found", status=404)
        return run

    @router.get("/runs")
    def runs() -> dict[str, Any]:
        """The runs, newest first, also those that have not saved a step yet."""
        state.models.refresh()
        return {"runs": [run_facts(look_at_run(run.path)) for run in state.models.runs().values()]}

    @router.get("/runs/{name}/logs/{log}")
    def logs(
        name: str,
        log: Literal["metrics", "samples", "skills", "events"],
        offset: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
        version: Annotated[str, Query(max_length=64)] = "",
    ) -> dict[str, Any]:
        """The lines of a log from a byte offset on. `version` is what the last answer said; a log that was rewritten starts again at 0."""
        return asdict(read_log(log_path(run_called(name).path, log), offset, version))

    @router.get("/runs/{name}/checks")
    def checks(name: str, reference: Annotated[str | None, Query(max_length=256)] = None) -> dict[str, Any]:
        """Whether the loss curve of a run is normal, by rules and by a reference curve (default: the one that fits; empty: none)."""
        run = run_called(name)
        looked = look_at_run(run.path)
        facts = run_facts(looked)
        if facts["damaged"]:
            raise RequestError(facts["damaged"], param="name", code="run_damaged", status=404)
        wanted, known = facts["reference"] if reference is None else reference, reference_names()
        held = wanted if wanted in known else None
        found = curves.of(run.path, facts, held)
        return {"checks": [asdict(check) for check in found], "references": known, "reference": held}

    @router.get("/references/{name}")
    def reference(name: str) -> dict[str, Any]:
        """The rows of a curve that ships with the package."""
        if name not in reference_names():
            raise RequestError(f"there is no reference curve {name!r:.80}", param="name", code="reference_not_found", status=404)
        return {"rows": read_reference(name)}


# --- helpers ----------------------------------------------------------------------------------------------------------------------------


def _model_list(state: ServerState) -> list[dict[str, Any]]:
    found, ids, runs = [], state.models.refresh(), state.models.runs()
    folders = [run.path.parent for run in runs.values()]
    base = newest_base(folders[0]) if folders else None
    for id in ids:
        run = runs.get(id)
        look = look_at_run(run.path) if run is not None else None
        served = state.models.in_memory(id)
        is_chat = served.speaker.is_chat if served is not None else look is not None and look.is_chat
        common: dict[str, Any] = {"run": id, "is_chat": is_chat, "about": "fine-tuned" if is_chat else "base", "remark": ""}
        if run is None or look is None:
            found.append({"id": id, "step": None, "name": "newest step", **common})
            continue
        best = step_number(run.points_to("best") or "")
        own = {**common, "about": in_words(look, best), "remark": outdated(look, base)}
        found.append({"id": id, "step": None, "name": "newest step" if best is None else "best step", **own})
        found += [
            {**own, "id": f"{id}@{step}", "step": step, "name": f"step {step:,}", "about": in_words(look, step)}
            for step in look.steps[::-1]
        ]
    return found


def _model_facts(served: Served) -> dict[str, Any]:
    speaker = served.speaker
    config, tokenizer = speaker.gpt.config, speaker.tokenizer
    return {
        "id": served.id,
        "parameters": config.parameters,
        "layers": config.n_layer,
        "heads": config.n_head,
        "context_len": config.context_len,
        "vocab_size": config.vocab_size,
        "is_chat": speaker.is_chat,
        "weights": speaker.weights,
        "end_ids": sorted(speaker.end_ids),
        "banned_ids": sorted((tokenizer.control_ids | {UNK}) - speaker.end_ids),
    }


def _described(served: Served, ids: list[int]) -> list[dict[str, Any]]:
    """The tokens behind ids as JSON; bytes in hexadecimal."""
    return [_token(view) for view in lens.token_views(served.speaker.tokenizer, ids)]


def _token(view: lens.TokenView) -> dict[str, Any]:
    return {"id": view.id, "piece": view.piece, "text": view.text, "bytes": view.bytes.hex(), "kind": view.kind}


def _fp32(values: Any) -> str:
    """A tensor as base64 of little-endian fp32."""
    return base64.b64encode(values.contiguous().numpy().astype("<f4").tobytes()).decode()


def _next(served: Served, ask: NextAsk) -> dict[str, Any]:
    tokenizer = served.speaker.tokenizer
    if ask.as_question and served.speaker.is_chat:
        ids = encode_chat(tokenizer, [Message("user", ask.text)], add_generation_prompt=True).ids
    else:
        ids = [BOS, *tokenizer.encode(ask.text)]
    check_ids(tokenizer, ask.then, "then")
    logits = lens.next_token_distribution(served.speaker.gpt, ids + ask.then)
    likeliest = logits.topk(min(ask.top, len(logits))).indices.tolist()
    return {"logits": _fp32(logits), "candidates": _described(served, likeliest), "tokens": len(ids) + len(ask.then)}


def _pieces(served: Served, ids: list[int]) -> dict[str, Any]:
    check_ids(served.speaker.tokenizer, ids, "ids")
    return {"tokens": _described(served, ids)}


def _surprise(served: Served, text: str) -> dict[str, Any]:
    ids = served.speaker.tokenizer.encode(text)
    nats = lens.surprise(served.speaker.gpt, [BOS, *ids])
    return {"tokens": [{**token, "nats": value} for token, value in zip(_described(served, ids), nats, strict=True)]}


def _fitting(served: Served, text: str, most: int) -> list[int]:
    """The ids of a text, bos first. Errors: RequestError if they are more than `most` or the context."""
    ids = [BOS, *served.speaker.tokenizer.encode(text)]
    most = min(most, served.speaker.context_len)
    if len(ids) > most:
        raise RequestError(f"the text has {len(ids):,} tokens; this view reads at most {most:,} with this model", param="text")
    return ids


def _attention(served: Served, text: str) -> dict[str, Any]:
    config = served.speaker.gpt.config
    ids = _fitting(served, text, int((MAX_WEIGHTS / (config.n_layer * config.n_head)) ** 0.5))
    weights = _fp32(lens.attention_maps(served.speaker.gpt, ids))
    return {"tokens": _described(served, ids), "layers": config.n_layer, "heads": config.n_head, "weights": weights}


def _logit_lens(served: Served, ask: LensAsk) -> dict[str, Any]:
    ids = _fitting(served, ask.text, MAX_LENS_TOKENS)
    layers = []
    for guess in lens.logit_lens(served.speaker.gpt, ids, ask.k):
        top = [
            [{"token": token, "p": p} for token, p in zip(_described(served, row), probabilities, strict=True)]
            for row, probabilities in zip(guess.ids.tolist(), guess.probabilities.tolist(), strict=True)
        ]
        layers.append({"top": top, "entropy": guess.entropy.tolist(), "final": guess.final.tolist()})
    return {"tokens": _described(served, ids), "layers": layers}


def _mask(tokenizer: Tokenizer, row: str) -> dict[str, Any]:
    messages = conversation_of(row)
    return {"tokens": [{**_token(masked.token), "trained": masked.is_trained} for masked in lens.fine_tuning_mask(tokenizer, messages)]}


def conversation_of(row: str) -> tuple[Message, ...]:
    """The conversation in one row of a file, read as fine-tuning reads it. Errors: RequestError that says what was expected."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "row"
        path.write_bytes(row.replace("\n", " ").encode())
        try:
            return read_conversations(path).conversations[0].messages
        except DataError as error:
            raise RequestError(error.message.removeprefix(f"{path}, line 1: ").removeprefix(f"{path}: "), param="row") from error
