"""Training: exactly the recipe, equal bytes everywhere, nothing dropped, sizes that do not fit are named."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator

import pytest

from helpers.processes import in_a_process
from helpers.texts import made_stories
from positron_mini.errors import DataError, TokenizerError
from positron_mini.text.tokenizer import Tokenizer, train_tokenizer

TRAIN_AND_PRINT = """
import sys
from helpers.texts import made_stories
from positron_mini.text.tokenizer import train_tokenizer
print(train_tokenizer(made_stories(100), 400, threads=int(sys.argv[1])).fingerprint)
"""


def test_equal_texts_give_equal_bytes_in_any_process_with_any_threads() -> None:
    here = train_tokenizer(made_stories(100), 400, threads=3)
    assert here.fingerprint == hashlib.sha256(here.model_bytes).hexdigest()
    for threads in "1", "2":
        other = in_a_process(TRAIN_AND_PRINT, threads)
        assert (other.stdout.strip(), other.stderr) == (here.fingerprint, "")


def test_other_texts_give_another_fingerprint() -> None:
    assert train_tokenizer(made_stories(100), 400).fingerprint != train_tokenizer(made_stories(100, seed=1), 400).fingerprint


def test_training_and_its_failure_write_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(made_stories(50), 350)
    for texts, size in ((made_stories(5), 50_000), ([], 300), (made_stories(5), 10)):
        with pytest.raises(TokenizerError):
            train_tokenizer(texts, size)
    assert tuple(capfd.readouterr()) == ("", "")


def test_the_model_file_records_the_recipe() -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(train_tokenizer(made_stories(50), 350, threads=2).model_bytes)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    assert (trainer.model_type, trainer.vocab_size, trainer.byte_fallback, trainer.split_digits) == (2, 350, True, True)
    assert (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id) == (0, 1, 2, 3)
    assert list(trainer.control_symbols) == ["<|im_start|>", "<|im_end|>"]
    assert trainer.character_coverage >= 0.9995
    assert trainer.allow_whitespace_only_pieces
    assert trainer.num_threads == 1
    assert (normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces) == ("identity", False, False)


@pytest.mark.parametrize(
    ("stories", "size", "said", "beyond"),
    [*((3, size, "too large", 1) for size in (10_000, 70_000)), *((50, size, "too small", -1) for size in (-5, 0, 100, 262, 280))],
)
def test_a_vocabulary_that_does_not_fit_the_text_names_the_next_that_does(stories: int, size: int, said: str, beyond: int) -> None:
    texts = made_stories(stories)
    with pytest.raises(TokenizerError, match=f"{size:,} pieces is {said}") as caught:
        train_tokenizer(texts, size)
    works = int(re.match(r"--vocab_size (\d+)", caught.value.hint)[1])
    assert train_tokenizer(texts, works).vocab_size == works
    with pytest.raises(TokenizerError, match=said):
        train_tokenizer(texts, works + beyond)


def test_an_absurd_vocabulary_is_refused_at_once() -> None:
    with pytest.raises(TokenizerError, match="at most 1,048,576"):
        train_tokenizer(made_stories(1), 1 << 40)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "\t", "\0"]])
def test_no_text_is_said_to_be_no_text(texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="no text") as caught:
        train_tokenizer(texts, 300)
    assert "--dataset_path" in caught.value.hint


def learned(tokenizer: Tokenizer) -> set[str]:
    return {piece.text for piece in tokenizer.pieces()}


@pytest.mark.parametrize(
    "breaker", ["\n", "\r\n", "\t", "\0", "\x1f", "\u2585", "\u2581", "\ufffd", "\ufeff", "\u2028", "<s>", "<|im_start|>", "\ue000"]
)
def test_no_character_makes_the_trainer_drop_its_sentence(breaker: str) -> None:
    texts = ["the cat sat on the mat"] * 20 + [f"zebra{breaker}zebra"] * 50
    assert "zebra" in learned(train_tokenizer(texts, 290))


def train_to_the_largest(texts: list[str]) -> tuple[set[str], int]:
    with pytest.raises(TokenizerError, match="too large") as caught:
        train_tokenizer(texts, 50_000)
    largest = int(re.search(r"\d+", caught.value.hint)[0])
    return learned(train_tokenizer(texts, largest)), largest


def test_the_end_of_a_document_of_megabytes_is_learned() -> None:
    filler = "the cat sat on the mat under my nose. " * 50_000
    assert len(filler) > 1_500_000
    for last in (" momentum" * 90, "\n" + " momentum" * 90):
        with_end, largest = train_to_the_largest([filler + last])
        assert "\u2581momentum" in with_end
        assert largest > train_to_the_largest([filler])[1]


def test_a_run_of_a_hundred_thousand_characters_without_a_space_is_learned() -> None:
    rng = random.Random(0)
    run = "".join(rng.choice("abcdef") for _ in range(100_000))
    assert train_tokenizer([run], 300).vocab_size == 300
    assert list(map(len, spm_sentences("a" * 25_000))) == [10_000, 10_000, 5_000]
    spaced = "ab cde " * 5_000
    assert "".join(spm_sentences(spaced)) == spaced
    assert all(part.startswith(" ") for part in list(spm_sentences(spaced))[1:])


def spm_sentences(text: str) -> Iterator[str]:
    from positron_mini.text.tokenizer.spm import _sentences

    return _sentences(text)


def test_an_error_of_the_source_reaches_the_caller_as_it_was() -> None:
    def source() -> Iterator[str]:
        yield "the cat"
        raise DataError("story 2 is broken", "remove it")

    def interrupted() -> Iterator[str]:
        yield "the cat"
        raise KeyboardInterrupt

    with pytest.raises(DataError, match="story 2 is broken"):
        train_tokenizer(source(), 300)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(interrupted(), 300)
    with pytest.raises(TokenizerError, match="surrogate"):
        train_tokenizer(["fine", "a\ud800b"], 300)
