"""From a request to what the model reads: ids from bos on that leave room to write, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from positron_mini.chat_format import Message, encode_chat
from positron_mini.tokenizer import BOS, Tokenizer
from positron_mini.web.schemas import ChatRequest, CompletionRequest, RequestError
from positron_mini.web.state import Served


@dataclass(frozen=True)
class Prompt:
    """Ids from bos on, of which the first `added` were not in the request; how many tokens may follow; how many messages were left out."""

    ids: list[int]
    room: int
    added: int = 1
    dropped: int = 0


def chat_prompt(served: Served, request: ChatRequest) -> Prompt:
    """What the model reads for a conversation. A base model, which knows no conversations, continues the last message as a text.

    Errors: RequestError when it does not fit the context.
    """
    messages = [Message("system" if m.role == "developer" else m.role, m.text) for m in request.messages]
    dropped = 0
    if not served.speaker.is_chat:
        messages = messages[-1:]
        ids = [BOS, *_encoded(served, messages[0].content, "messages")]
    else:
        wanted = request.max_completion_tokens or request.max_tokens or served.speaker.context_len
        if request.truncation == "auto":
            kept = newest_that_fit(served, messages, served.speaker.context_len - max(1, min(wanted, served.speaker.context_len // 4)))
            dropped, messages = len(messages) - len(kept), kept
        _check_length(served, sum(len(message.content) for message in messages), "messages")
        ids = encode_chat(served.speaker.tokenizer, messages, add_generation_prompt=True).ids
    return Prompt(ids, _room(served, len(ids), "messages"), dropped=dropped)


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


def text_prompt(served: Served, request: CompletionRequest) -> Prompt:
    """What the model reads for a text or for ids, bos first. Errors: RequestError for ids that do not exist or too many tokens."""
    prompt = request.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, str):
        ids = _encoded(served, prompt, "prompt")
    else:
        ids = [index for index in prompt if isinstance(index, int)]
        check_ids(served.speaker.tokenizer, ids, "prompt")
    added = [BOS] if ids[:1] != [BOS] else []
    ids = added + ids
    return Prompt(ids, _room(served, len(ids), "prompt", scores_only=request.max_tokens == 0), len(added))


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> None:
    """Nothing. Errors: RequestError naming the first id that the vocabulary lacks."""
    wrong = next((index for index in ids if not 0 <= index < tokenizer.vocab_size), None)
    if wrong is not None:
        raise RequestError(f"{param}: there is no token {wrong:,}; ids go from 0 to {tokenizer.vocab_size - 1:,}", param=param)


def _encoded(served: Served, text: str, param: str) -> list[int]:
    _check_length(served, len(text), param)
    return served.speaker.tokenizer.encode(text)


def _check_length(served: Served, characters: int, param: str) -> None:
    """Nothing. Errors: RequestError for a text too long to fit whatever its tokens are; encoding it would take time."""
    if characters > served.longest_text:
        raise _too_long(served, f"{characters:,} characters", param)


def _room(served: Served, tokens: int, param: str, *, scores_only: bool = False) -> int:
    """Tokens that fit the context after so many. Errors: RequestError when none does."""
    room = served.speaker.context_len - tokens
    if room < (0 if scores_only else 1):
        raise _too_long(served, f"{tokens:,} tokens", param)
    return room


def _too_long(served: Served, size: str, param: str) -> RequestError:
    limit = f"this model's context holds {served.speaker.context_len:,} tokens, the answer included"
    return RequestError(f"{param}: {size} are too many; {limit}", param=param, code="context_length_exceeded")
