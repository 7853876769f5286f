"""Our errors as HTTP answers: a status and a body in OpenAI's shape."""

from __future__ import annotations

from typing import Any, NamedTuple

from positron_mini.errors import CheckpointError, NotFiniteOutput, PositronError
from positron_mini.web.engine import Busy, Stopped
from positron_mini.web.schemas import RequestError, error_body


class Failure(NamedTuple):
    """An HTTP answer that reports an error."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


def failure(error: PositronError) -> Failure:
    """The answer for an error: 429 or 503 if the engine has no room, 422 if the model's output is not finite, mostly 400."""
    message = error.message
    match error:
        case RequestError():
            return Failure(error.status, error_body(message, "invalid_request_error", param=error.param, code=error.code))
        case Busy():
            body = error_body(f"{message}; {error.hint}", "rate_limit_error", code="queue_full")
            return Failure(429, body, {"retry-after": str(error.retry_after_s)})
        case Stopped():
            return Failure(503, error_body(message, "server_error", code="stopped"), {"connection": "close"})
        case NotFiniteOutput():  # not 5xx: clients would retry, and the answer would be the same
            return Failure(422, error_body(message, "invalid_request_error", param="model", code="not_finite"))
        case CheckpointError():
            return Failure(503, error_body(message, "server_error", code="model_unavailable"))
    return Failure(400, error_body(message, "invalid_request_error"))
