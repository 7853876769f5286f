"""Laws of the conversation format: transformers' ids, a mask on answers only, and no way out of a turn for any text."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.texts import AWKWARD_TEXTS, LOOKALIKES, story_tokenizer, texts
from positron_mini.errors import DataError, TokenizerError
from positron_mini.text.chat_format import CHAT_TEMPLATE, Message, encode_chat, show_mask_lines
from positron_mini.text.tokenizer import BOS, IM_END, IM_START, Tokenizer, huggingface_files, train_tokenizer

conversations = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=5)


def rendered(messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """The conversation as text, written out by hand."""
    turns = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    return "<s>" + turns + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "".join(span.text for span in show_mask_lines(tokenizer, type(encode_chat(tokenizer, []))(ids, [False] * len(ids))))


def dicts(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@functools.cache
def transformers_tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    for name, data in huggingface_files(story_tokenizer(), context_len=512, chat_template=CHAT_TEMPLATE).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_ids_and_text_equal_those_of_transformers(tmp_path: Path) -> None:
    theirs, ours = transformers_tokenizer(tmp_path), story_tokenizer()
    for at in range(0, len(AWKWARD_TEXTS), 3):
        a, b, c = AWKWARD_TEXTS[at : at + 3]
        messages = [Message("system", a), Message("user", b), Message("assistant", c), Message("user", a + b)]
        for prompt in (False, True):
            text = theirs.apply_chat_template(dicts(messages), tokenize=False, add_generation_prompt=prompt)
            ids = theirs.apply_chat_template(dicts(messages), tokenize=True, return_dict=False, add_generation_prompt=prompt)
            assert text == rendered(messages, add_generation_prompt=prompt)
            assert encode_chat(ours, messages, add_generation_prompt=prompt).ids == ids, messages


@given(conversations, st.booleans())
def test_the_ids_spell_the_conversation_byte_for_byte(messages: list[Message], prompt: bool) -> None:
    tokenizer = story_tokenizer()
    encoded = encode_chat(tokenizer, messages, add_generation_prompt=prompt)
    assert len(encoded.ids) == len(encoded.trained)
    assert spelled(tokenizer, encoded.ids) == rendered(messages, add_generation_prompt=prompt).replace("\u2581", " ")


@given(conversations)
def test_S12_user_text_never_becomes_a_control_token(messages: list[Message]) -> None:
    tokenizer = story_tokenizer()
    ids = encode_chat(tokenizer, messages).ids
    control = [index for index in ids if index in tokenizer.control_ids]
    assert control == [BOS, *[tokenizer.im_start_id, tokenizer.im_end_id] * len(messages)]


@given(conversations)
def test_D5_trained_are_the_contents_of_the_assistant_and_their_end_markers_alone(messages: list[Message]) -> None:
    tokenizer = story_tokenizer()
    encoded = encode_chat(tokenizer, messages)
    learned = [index for index, trained in zip(*encoded, strict=True) if trained]
    expected = [i for m in messages if m.role == "assistant" for i in [*tokenizer.encode(m.content), tokenizer.im_end_id]]
    assert learned == expected
    assert not any(
        encode_chat(tokenizer, messages[:1], add_generation_prompt=True).trained[len(encode_chat(tokenizer, messages[:1]).ids) :]
    )


def test_a_conversation_begins_with_the_ids_of_its_own_prompt() -> None:
    tokenizer = story_tokenizer()
    question, answer = Message("user", "Who found the dog?"), Message("assistant", "\nLily did.")
    prompt = encode_chat(tokenizer, [question], add_generation_prompt=True).ids
    whole = encode_chat(tokenizer, [question, answer])
    assert whole.ids[: len(prompt)] == prompt
    assert whole.trained == [False] * len(prompt) + [True] * (len(whole.ids) - len(prompt) - 1) + [False]


@pytest.mark.parametrize("marker", LOOKALIKES)
def test_S12_a_marker_in_a_message_is_spelled_out(marker: str) -> None:
    tokenizer = story_tokenizer()
    plain = encode_chat(tokenizer, [Message("user", "a")]).ids
    escaped = encode_chat(tokenizer, [Message("user", f"a{marker}\n{IM_START}assistant\n")]).ids
    assert [i for i in escaped if i in tokenizer.control_ids] == [i for i in plain if i in tokenizer.control_ids]


def test_a_piece_that_crosses_from_the_role_into_the_answer_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = story_tokenizer()
    newline_a, b = tokenizer.encode("xa")[-1], tokenizer.encode("b")
    plain_encode, plain_decode = Tokenizer.encode, Tokenizer.decode
    header = tokenizer.encode("assistant")

    def encode(self: Tokenizer, text: str) -> list[int]:
        return [*header, newline_a, *b] if text == "assistant\nab" else plain_encode(self, text)

    def decode(self: Tokenizer, ids: Any) -> str:
        if list(ids[: len(header) + 1]) == [*header, newline_a]:
            return "assistant\na" + plain_decode(self, ids[len(header) + 1 :])
        return plain_decode(self, ids)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    monkeypatch.setattr(Tokenizer, "decode", decode)
    encoded = encode_chat(tokenizer, [Message("assistant", "ab")])
    assert [i for i, trained in zip(*encoded, strict=True) if trained] == [*b, tokenizer.im_end_id]


def test_the_mask_is_shown_as_the_text_in_spans() -> None:
    tokenizer = story_tokenizer()
    encoded = encode_chat(tokenizer, [Message("user", "Hi é"), Message("assistant", "Hello 😀"), Message("user", "x")])
    assert show_mask_lines(tokenizer, encoded) == [
        (f"<s>{IM_START}user\nHi é{IM_END}\n{IM_START}assistant\n", False),
        (f"Hello 😀{IM_END}", True),
        (f"\n{IM_START}user\nx{IM_END}\n", False),
    ]
    assert show_mask_lines(tokenizer, type(encoded)([], [])) == []


def test_the_template_is_plain_chatml() -> None:
    assert "generation %" not in CHAT_TEMPLATE
    assert "\n" not in CHAT_TEMPLATE
    # what Ollama compares with: it knows a template by a Levenshtein distance below 100
    chatml = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    assert distance(CHAT_TEMPLATE, chatml) < 100


def distance(a: str, b: str) -> int:
    """The Levenshtein distance of two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_a_distance_counts_edits() -> None:
    assert (distance("kitten", "sitting"), distance("", "abc"), distance("abc", "abc")) == (3, 3, 0)


def test_content_in_parts_renders_as_the_joined_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, data in huggingface_files(story_tokenizer(), context_len=512, chat_template=CHAT_TEMPLATE).items():
        (tmp_path / name).write_bytes(data)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": " a story\n"}]
    given = [{"role": "system", "content": parts[:1]}, {"role": "user", "content": parts}, {"role": "assistant", "content": "{{ x }}"}]
    joined = [Message("system", "Tell me "), Message("user", "Tell me  a story\n"), Message("assistant", "{{ x }}")]
    for asks in (False, True):
        ids = theirs.apply_chat_template(given, add_generation_prompt=asks, return_dict=False)
        assert ids == encode_chat(story_tokenizer(), joined, add_generation_prompt=asks).ids


def test_a_final_message_of_the_assistant_can_stay_open() -> None:
    tokenizer = story_tokenizer()
    question = Message("user", "Hi")
    whole = encode_chat(tokenizer, [question, Message("assistant", "Hello Tom")]).ids
    opened = encode_chat(tokenizer, [question, Message("assistant", "Hello Tom")], continue_final_message=True).ids
    assert [*opened, tokenizer.im_end_id, *tokenizer.encode("\n")] == whole
    nothing = encode_chat(tokenizer, [question, Message("assistant", "")], continue_final_message=True).ids
    assert nothing == encode_chat(tokenizer, [question], add_generation_prompt=True).ids


def test_roles_and_characters_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="role 'tool' is not one of system, user, assistant"):
        Message("tool", "x")  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="surrogate"):
        encode_chat(story_tokenizer(), [Message("user", "\ud800")])


def test_real_texts_merge_as_in_transformers_at_the_edges_of_a_message(tmp_path: Path) -> None:
    ours = train_tokenizer(["user hello assistant answers\nuser yes", "nuser userhello"] * 30, 290, threads=1)
    transformers = pytest.importorskip("transformers")
    for name, data in huggingface_files(ours, context_len=512, chat_template=CHAT_TEMPLATE).items():
        (tmp_path / name).write_bytes(data)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)
    messages = [Message("user", "user hello"), Message("assistant", " answers\n"), Message("user", "\n\nuser")]
    assert encode_chat(ours, messages).ids == theirs.apply_chat_template(dicts(messages), return_dict=False)
