"""The Hugging Face files: equal ids and equal text in `tokenizers` and transformers."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.processes import in_a_process
from helpers.texts import AWKWARD_TEXTS, made_stories, real_stories, repetitive_tokenizer, story_tokenizer
from positron_mini.errors import TokenizerError
from positron_mini.text.tokenizer import Tokenizer, huggingface_files, train_tokenizer
from positron_mini.text.tokenizer.model_file import SPECIAL_PIECES

TEMPLATE = "{% for m in messages %}{{ m.role }}{{ '\\n' }}{% endfor %}"


def fast_tokenizer(tokenizer: Tokenizer) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_str(huggingface_files(tokenizer, context_len=64, chat_template=None)["tokenizer.json"].decode())


story_fast = functools.cache(lambda: fast_tokenizer(story_tokenizer()))
repetitive_fast = functools.cache(lambda: fast_tokenizer(repetitive_tokenizer()))


def test_fast_ids_are_bos_and_our_ids_on_awkward_texts() -> None:
    for text in AWKWARD_TEXTS:
        assert story_fast().encode(text).ids == [1, *story_tokenizer().encode(text)], text
        assert story_fast().encode(text, add_special_tokens=False).ids == story_tokenizer().encode(text), text


@settings(max_examples=300)
@given(st.text(alphabet="ab ", max_size=60))
def test_fast_merges_equal_ours_where_a_text_can_be_cut_in_many_ways(text: str) -> None:
    assert repetitive_fast().encode(text).ids == [1, *repetitive_tokenizer().encode(text)]


@pytest.mark.parametrize("alphabet", ["ab", "ab ", "a ", "aab ", "abc", "1a "])
def test_fast_merges_equal_ours_for_random_vocabularies(alphabet: str) -> None:
    rng = random.Random(alphabet)
    ours = train_tokenizer(["".join(rng.choices(alphabet, k=60)) for _ in range(80)], 278, threads=1)
    fast = fast_tokenizer(ours)
    for _ in range(100):
        text = "".join(rng.choices(alphabet, k=rng.randrange(50)))
        assert fast.encode(text).ids == [1, *ours.encode(text)], text


@given(st.text().filter(lambda text: not any(piece in text for piece in SPECIAL_PIECES)))
def test_fast_ids_equal_ours_for_any_text_that_spells_no_control_piece(text: str) -> None:
    assert story_fast().encode(text).ids == [1, *story_tokenizer().encode(text)]


def test_fast_decoding_equals_ours() -> None:
    for text in AWKWARD_TEXTS:
        ids = [1, *story_tokenizer().encode(text), 2]
        assert story_fast().decode(ids, skip_special_tokens=True) == story_tokenizer().decode(ids) == text
    every = [[id] for id in range(story_tokenizer().vocab_size)]
    assert [story_fast().decode(ids, skip_special_tokens=True) for ids in every] == [story_tokenizer().decode(ids) for ids in every]


def test_files_depend_on_the_arguments_only() -> None:
    code = """
import hashlib
from helpers.texts import made_stories
from positron_mini.text.tokenizer import huggingface_files, train_tokenizer
files = huggingface_files(train_tokenizer(made_stories(100), 400), context_len=512, chat_template="x")
print({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
"""
    first, second = in_a_process(code), in_a_process(code)
    assert first.returncode == 0
    assert first.stdout == second.stdout


def test_base_folders_have_no_chat_template_and_chat_folders_have_it_twice() -> None:
    base = huggingface_files(story_tokenizer(), context_len=512, chat_template=None)
    assert sorted(base) == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert base["tokenizer.model"] == story_tokenizer().model_bytes
    config = json.loads(base["tokenizer_config.json"])
    assert "chat_template" not in config
    assert (config["model_max_length"], config["add_bos_token"], config["add_prefix_space"]) == (512, True, False)
    chat = huggingface_files(story_tokenizer(), context_len=512, chat_template=TEMPLATE)
    assert chat["chat_template.jinja"].decode() == json.loads(chat["tokenizer_config.json"])["chat_template"] == TEMPLATE


def write_folder(folder: Path, tokenizer: Tokenizer) -> Path:
    for name, data in huggingface_files(tokenizer, context_len=512, chat_template=TEMPLATE).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    return folder


@pytest.mark.parametrize("name", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_transformers_gives_our_ids_and_text(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = story_tokenizer()
    theirs = getattr(transformers, name).from_pretrained(write_folder(tmp_path, ours), local_files_only=True)
    assert len(theirs) == ours.vocab_size
    for text in AWKWARD_TEXTS:
        ids = [1, *ours.encode(text)]
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs(AWKWARD_TEXTS).input_ids == [[1, *ids] for ids in ours.encode_many(AWKWARD_TEXTS)]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (1, 2, 0, 3)
    assert theirs.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [ours.im_start_id, ours.im_end_id]
    assert theirs("<|im_start|>", add_special_tokens=False).input_ids == [4]  # the known difference: ours spells it out
    assert theirs.model_max_length == 512
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "user\n"


def test_real_stories_have_equal_ids_in_fast_tokenizers() -> None:
    stories = real_stories("tinystories-valid.txt")
    ours = train_tokenizer(stories, 4000, threads=1)
    fast = fast_tokenizer(ours)
    assert [row.ids for row in fast.encode_batch(stories[:300])] == [[1, *ids] for ids in ours.encode_many(stories[:300])]


def test_the_files_load_as_the_tokenizer_they_came_from() -> None:
    data = huggingface_files(story_tokenizer(), context_len=8, chat_template=None)
    assert Tokenizer.from_bytes(data["tokenizer.model"], "m").fingerprint == story_tokenizer().fingerprint
    with pytest.raises(TokenizerError, match="JSON"):
        Tokenizer.from_bytes(data["tokenizer.json"], "tokenizer.json")


def test_a_vocabulary_of_seventy_thousand_keeps_its_ids() -> None:
    rng = random.Random(0)
    syllables = [a + b + c for a in "bcdfghjklmnprstvz" for b in "aeiou" for c in "bdgklmnprstz"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(90_000)]
    ours = train_tokenizer([" ".join(words), *made_stories(10)], 70_000)
    rare = [id for id in (65_534, 65_535, 65_536, 69_000) if ours.pieces()[id].kind == "normal"]
    assert [ours.encode(ours.decode([id])) for id in rare] == [[id] for id in rare]
