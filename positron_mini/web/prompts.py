"""From a request to the prompt: token ids, bos first, that leave room for the answer; or an error that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from positron_mini.text.chat_format import Message, Role, encode_chat
from positron_mini.text.tokenizer import BOS, Tokenizer
from positron_mini.web.schemas import MAX_PROMPTS, ChatRequest, CompletionRequest, RequestError
from positron_mini.web.state import Served


@dataclass(frozen=True)
class Prompt:
    """Ids, bos first (the first `added` were not in the request), how many tokens may follow, and how many messages were left out."""

    ids: list[int]
    room: int
    added: int = 1
    dropped: int = 0


def chat_prompt(served: Served, request: ChatRequest, drops_oldest: bool = False) -> Prompt:
    """The prompt for a conversation. A base model, which knows no conversations, continues the last message as a text.

    If the last message is the assistant's, the answer continues it. `drops_oldest` applies if the request names no rule.
    Errors: RequestError if it does not fit the context.
    """
    messages, dropped = _turns(request), 0
    drops = request.truncation == "auto" if request.truncation else drops_oldest
    if not served.speaker.is_chat:
        ids = [BOS, *_encoded(served, messages[-1].content if messages else "", "messages", drops_oldest=drops)]
    else:
        wanted = request.max_completion_tokens or request.max_tokens or served.speaker.context_len
        if drops:
            kept = newest_that_fit(served, messages, served.speaker.context_len - max(1, min(wanted, served.speaker.context_len // 4)))
            dropped, messages = len(messages) - len(kept), kept
        _check_length(served, sum(len(message.content) for message in messages), "messages")
        goes_on = bool(messages) and messages[-1].role == "assistant"
        tokenizer = served.speaker.tokenizer
        ids = encode_chat(tokenizer, messages, add_generation_prompt=not goes_on, continue_final_message=goes_on).ids
    return Prompt(ids, _room(served, len(ids), "messages"), dropped=dropped)


def _turns(request: ChatRequest) -> list[Message]:
    """The messages of a request in the roles of the chat format; a tool's answer becomes a message of the user."""
    roles: dict[str, Role] = {"developer": "system", "tool": "user", "function": "user"}
    return [Message(roles.get(m.role, cast(Role, m.role)), m.text) for m in request.messages if m.content is not None]


def newest_that_fit(served: Served, messages: Sequence[Message], limit: int) -> list[Message]:
    """The system messages and as many of the newest others as `limit` tokens hold, in order; the last one in any case."""
    tokenizer = served.speaker.tokenizer
    size = len(encode_chat(tokenizer, [], add_generation_prompt=True).ids)
    size += sum(_size(served, message) for message in messages if message.role == "system")
    spared: list[int] = []
    for index in reversed([i for i, message in enumerate(messages) if message.role != "system"]):
        size += _size(served, messages[index])
        if size > limit and spared:
            break
        spared.append(index)
    return [message for i, message in enumerate(messages) if message.role == "system" or i in spared]


def _size(served: Served, message: Message) -> int:
    """Tokens of one message; the whole context for a text too long to be worth encoding."""
    if len(message.content) > served.longest_text:
        return served.speaker.context_len
    return len(encode_chat(served.speaker.tokenizer, [message]).ids) - 1  # bos belongs to the conversation


def text_prompts(served: Served, request: CompletionRequest, drops_oldest: bool = False) -> list[Prompt]:
    """The prompt for each text or list of ids, bos first. Errors: RequestError for unknown ids or too many tokens."""
    prompt = request.prompt
    given: list[Any] = [prompt] if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else [*prompt]
    if len(given) * (request.n or 1) > MAX_PROMPTS:
        raise RequestError(f"{len(given)} prompts, {request.n} times each; at most {MAX_PROMPTS} texts are written at once", param="n")
    return [_text_prompt(served, one, request, drops_oldest) for one in given]


def _text_prompt(served: Served, prompt: Any, request: CompletionRequest, drops_oldest: bool) -> Prompt:
    if isinstance(prompt, str):
        ids = _encoded(served, prompt, "prompt", drops_oldest=drops_oldest)
    else:
        check_ids(served.speaker.tokenizer, prompt, "prompt")
        ids = _newest(served, prompt) if drops_oldest else prompt
    added = [BOS] if ids[:1] != [BOS] else []
    ids = added + ids
    return Prompt(ids, _room(served, len(ids), "prompt", scores_only=request.max_tokens == 0), len(added))


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> None:
    """Raise RequestError, naming the first id that the vocabulary lacks, if there is one."""
    wrong = next((index for index in ids if not 0 <= index < tokenizer.vocab_size), None)
    if wrong is not None:
        raise RequestError(f"{param}: there is no token {wrong:,}; ids go from 0 to {tokenizer.vocab_size - 1:,}", param=param)


def _encoded(served: Served, text: str, param: str, *, drops_oldest: bool) -> list[int]:
    """The ids of a text without bos; if `drops_oldest`, only the newest that fit. Errors: RequestError for a long text."""
    if drops_oldest:
        return _newest(served, served.speaker.tokenizer.encode(text[-served.longest_text :]))
    _check_length(served, len(text), param)
    return served.speaker.tokenizer.encode(text)


def _newest(served: Served, ids: list[int]) -> list[int]:
    """`ids` if they fit the context with bos and a next token, else as many of the newest as generation keeps of a full context."""
    context = served.speaker.context_len
    return ids if len(ids) + 1 < context else ids[-(3 * context // 4) :]


def _check_length(served: Served, characters: int, param: str) -> None:
    """Raise RequestError if a text is too long to fit whatever its tokens are, which saves encoding it."""
    if characters > served.longest_text:
        raise _too_long(served, f"{characters:,} characters", param)


def _room(served: Served, tokens: int, param: str, *, scores_only: bool = False) -> int:
    """How many tokens fit the context after `tokens`. Errors: RequestError if none does."""
    room = served.speaker.context_len - tokens
    if room < (0 if scores_only else 1):
        raise _too_long(served, f"{tokens:,} tokens", param)
    return room


def _too_long(served: Served, size: str, param: str) -> RequestError:
    limit = f"this model's context holds {served.speaker.context_len:,} tokens, the answer included"
    return RequestError(f"{param}: {size} are too many; {limit}", param=param, code="context_length_exceeded")
