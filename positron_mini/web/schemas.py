"""Requests and answers in OpenAI's shapes, with this server's ranges. Validation of a list stops at its first wrong item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from positron_mini.errors import PositronError

MAX_TOKENS = 1 << 17  # more than any context here: clients that want no limit send such numbers, and get as much as the context holds
MAX_MESSAGES = 256
MAX_TOOL_CALLS = 128
MAX_IDS = 1 << 18
MAX_TOKENIZED_CHARACTERS = 1 << 16
MAX_SEED = (1 << 63) - 1
MAX_TOP_LOGPROBS = 20
MAX_N = 8
MAX_PROMPTS = 64


# --- errors -----------------------------------------------------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    """What is wrong; `param` names the field, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class RequestError(PositronError):
    """A request that the schema allows but that cannot be answered."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def error_body(message: str, type: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def first_violation(errors: Sequence[Any]) -> tuple[str, str | None]:
    """A sentence about the first of pydantic's errors and the name of the field, never the value that was sent."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(where)[:200] or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return (f"{param}: {message}" if param else message), param


# --- pieces of requests -----------------------------------------------------------------------------------------------------------------


def _only(sentence: str) -> WrapValidator:
    """A validator that reports every violation, of any member of a union, with one sentence."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            said = next((line["msg"] for line in found if line["type"] == "no_nul"), sentence)
            raise PydanticCustomError("one_message", "{sentence}", {"sentence": said}) from None

    return WrapValidator(check)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("no_nul", "the text holds the character NUL")
    return text


def _integral(value: Any) -> Any:
    """An int for a whole number written as 32.0, as some programs do."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ask_nothing(value: Any) -> Any:
    if value:
        raise PydanticCustomError("not_offered", "this server does not support it")
    return value


Text = Annotated[str, AfterValidator(_without_nul), Field(json_schema_extra={"pattern": "^[^\\u0000]*$"})]
StopText = Annotated[Text, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=MAX_IDS)]
Ids = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=16)], _only("a text of 1 to 256 characters, or up to 16 of them")
]
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
IdsLists = Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
Prompt = Annotated[
    Text | Ids | Texts | IdsLists, _only(f"a text, a list of token ids, or a list of up to {MAX_PROMPTS} texts or lists of ids")
]
Whole = BeforeValidator(_integral)
Limit = Annotated[int, Field(ge=1, le=MAX_TOKENS), Whole]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """A part of a request. Settings that are not known here, such as `user`, are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Text


Content = Annotated[
    Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=64)],
    _only('a text, or a list of {"type": "text", "text": ...}'),
]


class ChatMessage(Body):
    """One turn of a conversation. `developer` is another name for `system`.

    This server calls no tools, but reads conversations in which some were called: a `tool` (or `function`) turn is read as one of the
    user's. Only an assistant that calls tools may say nothing (`content` null or absent); such a turn is left out.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    tool_calls: Annotated[list[Any], Field(max_length=MAX_TOOL_CALLS)] | None = None
    function_call: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.function_call)):
            raise PydanticCustomError("no_content", "only an assistant turn with tool_calls may have no content")
        return self

    @property
    def text(self) -> str:
        """The content as one text."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Body):
    """Settings of a streamed answer."""

    include_usage: bool | None = Field(None, description="send the token counts in a chunk of their own at the end")


class ResponseFormat(Body):
    """The form of the answer: text is the only one."""

    type: Literal["text"]


# --- requests ---------------------------------------------------------------------------------------------------------------------------


class SamplingRequest(Body):
    """How tokens are drawn. What is left out follows `positron chat` for conversations and `positron generate` for texts."""

    model: Annotated[str, Field(max_length=256)] | None = Field(None, description="an id of GET /v1/models (default: the first one)")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 always takes the likeliest token")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="keep the likeliest tokens that make up this share")
    top_k: Annotated[int, Field(ge=-1, le=1_000_000), Whole] | None = Field(
        None, description="keep only the k likeliest tokens (0, -1: all)"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="drop tokens below this share of the likeliest one's")
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="divide the logits of tokens that already occurred (1: off)"
    )
    presence_penalty: Penalty | None = Field(None, description="subtract this from the logits of tokens that the answer holds already")
    frequency_penalty: Penalty | None = Field(None, description="subtract this for each time that the answer holds the token already")
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), Whole] | None = Field(
        None, description="equal seeds give equal answers (-1: any)"
    )
    stop: Stop | None = Field(None, description="end before any of these texts")
    max_tokens: Limit | None = Field(None, description="tokens to write at most; never more than the context has room for")
    n: Annotated[int, Field(ge=1, le=MAX_N), Whole] | None = Field(None, description="answers to write, each with draws of its own")
    stream: bool | None = Field(None, description="send the answer as it is written, as server-sent events")
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Any], AfterValidator(_ask_nothing), Field(json_schema_extra={"maxProperties": 0})] | None = None


class ChatRequest(SamplingRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Limit | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool | None = Field(None, description="ln p of every token, under the model itself, before temperature")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), Whole] | None = Field(None, description="also the likeliest tokens")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: forget the oldest turns that do not fit the context; disabled: refuse (default: as --when_full says)"
    )
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], AfterValidator(_ask_nothing), Field(json_schema_extra={"maxItems": 0})] | None = None
    functions: Annotated[list[Any], AfterValidator(_ask_nothing), Field(json_schema_extra={"maxItems": 0})] | None = None


class CompletionRequest(SamplingRequest):
    """The body of POST /v1/completions."""

    prompt: Prompt = Field(description="the beginning of the text, bos is put before it; several are answered one after the other")
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), Whole] | None = Field(
        None, description="tokens to write at most; 0 with echo scores the prompt"
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), Whole] | None = Field(
        None, description="ln p of each token and of this many likeliest ones"
    )
    echo: bool | None = Field(None, description="begin the answer with the prompt, with its ln p where logprobs are asked for")
    best_of: Annotated[Literal[1], _only("this server shows all that it writes: best_of must be 1")] | None = None
    suffix: Annotated[str, AfterValidator(_ask_nothing), Field(json_schema_extra={"maxLength": 0})] | None = None


class TokenizeRequest(Body):
    """The body of POST /tokenize."""

    content: Annotated[Text, Field(max_length=MAX_TOKENIZED_CHARACTERS)]
    model: Annotated[str, Field(max_length=256)] | None = None
    add_special: bool | None = Field(None, description="put bos before the text")
    with_pieces: bool | None = Field(None, description="answer with objects of id and piece")


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    tokens: Ids
    model: Annotated[str, Field(max_length=256)] | None = None


# --- answers ----------------------------------------------------------------------------------------------------------------------------


class Usage(BaseModel):
    """Tokens read and written, the one that ended the answer included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Timings(BaseModel):
    """Where the time went, named as llama.cpp names it, and milliseconds in the queue."""

    queued_ms: float
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class LikelyToken(BaseModel):
    """A token, its ln p, and its bytes where they are known; `token` shows U+FFFD for a part of a character."""

    token: str
    id: int
    logprob: float
    bytes: list[int]


class TokenLogprob(LikelyToken):
    """A token of the answer and the likeliest ones at its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(BaseModel):
    """ln p of the tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """What the model answered."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """What all finished answers have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int
    usage: Usage
    timings: Timings


class ChatCompletion(Completion):
    """The answer to a conversation. `dropped_messages`: the oldest ones that `truncation` left out."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    dropped_messages: int


class TextLogprobs(BaseModel):
    """ln p of the tokens of a text; the first token of an echoed prompt has none if it is bos."""

    tokens: list[str]
    token_ids: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the continuations."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(Completion):
    """The continuation of a text."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(BaseModel):
    """A model that may be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that may be asked, the default one first."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Whether something is being computed, and how many requests wait."""

    status: Literal["ok"]
    running: bool
    waiting: int


class Piece(BaseModel):
    """A token as it stands in the vocabulary."""

    id: int
    piece: str


class TokenizeResponse(BaseModel):
    """The ids of a text."""

    tokens: list[int] | list[Piece]
    count: int


class DetokenizeResponse(BaseModel):
    """The text of ids."""

    content: str
