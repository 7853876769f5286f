"""The one conversation format, ChatML: messages to ids and to the mask of trained tokens.

A conversation is `<s>` and, for each message, `<|im_start|>` role newline content `<|im_end|>` newline. The markers are inserted as ids;
role and content are encoded by SentencePiece, which never yields a control id, so no text of a user can end its own turn.
transformers, whose tokenizer does parse markers out of text, gives the same ids for every text that spells none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from positron_mini.errors import DataError
from positron_mini.text.tokenizer import BOS, Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

# Plain ChatML, because llama.cpp and Ollama recognise it by its similarity to the template they know. Newlines are inside expressions:
# a bare one is dropped or kept by different engines. transformers adds no bos to a rendered template, so it is part of it.
# Content may be a list of OpenAI's parts, [{"type": "text", "text": ...}], whose texts are joined.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] if message['content'] is string"
    " else message['content']|join('', 'text')) + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Errors: DataError for an unknown role."""

    role: Role
    content: str
    learned: bool = True  # for an answer: whether training teaches it or it is only read; other messages are never learned

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role {self.role!r:.60} is not one of {', '.join(ROLES)}", 'use "system", "user" or "assistant"')


class Encoded(NamedTuple):
    """A conversation as ids. `trained[i]`: the model learns to write `ids[i]`; it reads all of them."""

    ids: list[int]
    trained: list[bool]


class Span(NamedTuple):
    """A stretch of text whose tokens are all trained, or all not; markers are spelled out."""

    text: str
    trained: bool


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False, continue_final_message: bool = False
) -> Encoded:
    """Encode a conversation and its mask: the contents of the assistant and the `<|im_end|>` after each are trained, except answers
    that are not to be learned.

    With `add_generation_prompt` the ids end where an assistant's content begins, with `continue_final_message` where that of the last
    message ends, its turn still open (names as in transformers). Errors: TokenizerError for a lone surrogate.
    """
    newline = tokenizer.encode("\n")
    ids, trained = [BOS], [False]
    for message in messages:
        header = f"{message.role}\n"
        # one text, as in transformers, which splits at markers only: a foreign vocabulary may hold pieces across the newline
        text = tokenizer.encode(header + message.content)
        is_answer = message.role == "assistant" and message.learned
        before = _tokens_of_header(tokenizer, text, len(header)) if is_answer else len(text)
        ids += [tokenizer.im_start_id, *text, tokenizer.im_end_id, *newline]
        trained += [False, *(i >= before for i in range(len(text))), is_answer, *(False for _ in newline)]
    if continue_final_message:
        end = len(ids) - 1 - len(newline)
        ids, trained = ids[:end], trained[:end]
    if add_generation_prompt:
        prompt = [tokenizer.im_start_id, *tokenizer.encode("assistant\n")]
        ids += prompt
        trained += [False] * len(prompt)
    return Encoded(ids, trained)


def _tokens_of_header(tokenizer: Tokenizer, ids: list[int], characters: int) -> int:
    """Number of `ids` for the first `characters`, which are ASCII; a piece that also holds later ones counts."""
    count = 0
    while len(tokenizer.decode(ids[:count])) < characters:
        count += 1
    return count


def show_mask_lines(tokenizer: Tokenizer, encoded: Encoded) -> list[Span]:
    """The conversation as text, cut where trained and untrained tokens meet. The text is unescaped: escape it before printing.
    """
    spans: list[Span] = []
    start = 0
    for end in range(1, len(encoded.ids) + 1):
        if end == len(encoded.ids) or encoded.trained[end] != encoded.trained[start]:
            spans.append(Span(_spelled(tokenizer, encoded.ids[start:end]), encoded.trained[start]))
            start = end
    return spans


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of `ids`, with control ids spelled out."""
    parts: list[str] = []
    start = 0
    for at, index in enumerate(ids):
        if index in tokenizer.control_ids:
            parts += [tokenizer.decode(ids[start:at]), tokenizer.piece(index)]
            start = at + 1
    return "".join([*parts, tokenizer.decode(ids[start:])])
