"""Reading a tokenizer file: what is missing, foreign, damaged or of another recipe is refused with the reason; nothing in it is run."""

from __future__ import annotations

import functools
import io
import pickle
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from helpers.faults import Canary
from helpers.processes import in_a_process
from helpers.texts import made_stories
from positron_mini.errors import PositronError, TokenizerError
from positron_mini.text.tokenizer import Tokenizer, model_file, train_tokenizer
from positron_mini.text.tokenizer.model_file import FIRST_NORMAL
from positron_mini.text.tokenizer.spm import RECIPE


@functools.cache
def model() -> bytes:
    return train_tokenizer(made_stories(100), 400, threads=1).model_bytes


def trained_with(**changes: object) -> bytes:
    written = io.BytesIO()
    options = {**RECIPE, **changes}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(made_stories(100)), model_writer=written, vocab_size=400, minloglevel=2, **options
    )
    return written.getvalue()


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_bytes(model(), "here")
    tokenizer.save(tmp_path / "new" / "spm.bpe.model")
    loaded = Tokenizer.load(str(tmp_path / "new" / "spm.bpe.model"))
    assert (loaded.fingerprint, loaded.model_bytes) == (tokenizer.fingerprint, model())
    assert loaded.encode("Once upon") == tokenizer.encode("Once upon")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["spm.bpe.model"]


def test_files_that_are_no_tokenizer_are_named_for_what_they_are(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("archive/data.pkl", b"x")
    cases = {
        "missing": (None, "no such tokenizer file"),
        "empty": (b"", "empty"),
        "text": (b"Once upon a time, there was a cat.", "not a SentencePiece model"),
        "zip.pt": (archive.getvalue(), "PyTorch"),
        "tokenizer.json": (b'{"version": "1.0"}', "tokenizer.model file beside it"),
        "model.gguf": (b"GGUF\x03\0\0\0", "GGUF"),
        "noise": (bytes(range(255, 0, -1)) * 20, "not a SentencePiece model"),
    }
    for name, (data, words) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(TokenizerError, match=words) as caught:
            Tokenizer.load(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message
        assert "--tokenizer_path" in caught.value.hint


def test_a_folder_is_refused_with_the_file_inside_it_as_hint(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="a folder") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint.endswith("tokenizer.model")
    with pytest.raises(TokenizerError):
        Tokenizer.load("a\0b")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.pt"])
def test_L1_a_pickle_is_never_opened(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    (tmp_path / name).write_bytes(pickle.dumps(Canary(canary), protocol=protocol))
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        Tokenizer.load(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "unigram"}, "model_type is 1, expected 2"),
        ({"byte_fallback": False}, "byte_fallback is 0, expected 1"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization is b'nmt_nfkc', expected identity"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix is 1, expected 0"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is 1, expected 0"),
        ({"split_digits": False}, "split_digits is 0, expected 1"),
        ({"allow_whitespace_only_pieces": False}, "allow_whitespace_only_pieces is 0, expected 1"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is 1, expected 0"),
        ({"pad_id": -1}, "pad_id is -1, expected 3"),
        ({"bos_id": 2, "eos_id": 1}, "bos_id is 2, expected 1"),
        ({"control_symbols": []}, "piece 4 is <0x00>, byte, expected <|im_start|>, control"),
        ({"control_symbols": ["<|im_end|>", "<|im_start|>"]}, "piece 4 is <|im_end|>"),
        ({"user_defined_symbols": ["<x>"]}, "1 user-defined symbols"),
    ],
)
def test_L5_a_model_of_another_recipe_is_refused_naming_the_difference(changes: dict[str, object], words: str) -> None:
    Tokenizer.from_bytes(trained_with(), "the recipe itself")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_bytes(trained_with(**changes), "other.model")
    assert "other.model: made by another recipe" in caught.value.message
    assert words in caught.value.message


def with_piece(index: int, **changes: object) -> bytes:
    message = sentencepiece_model_pb2.ModelProto.FromString(model())
    for name, value in changes.items():
        setattr(message.pieces[index], name, value)
    return message.SerializeToString()


def without_last_piece() -> bytes:
    message = sentencepiece_model_pb2.ModelProto.FromString(model())
    del message.pieces[-1]
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: with_piece(300, score=float("nan")), "score nan"),
        (lambda: with_piece(300, score=-5.0), "score -5"),
        (lambda: with_piece(300, type=5), "is unused"),
        (lambda: with_piece(300, type=4), "is user-defined"),
        (lambda: with_piece(300, type=3), "is control"),
        (lambda: with_piece(300, piece="qqqq"), "cannot be made of two"),
        (lambda: with_piece(300, piece=""), "empty"),
        (lambda: with_piece(399, piece="x\0"), "zero byte"),
        (lambda: with_piece(300, piece="\u2581the"), "twice"),
        (lambda: with_piece(7, piece="<0x00>"), "piece 7"),
        (lambda: model() + b"\x12\x00", "field 2 more than 1 times"),
        (lambda: model() + b"\x1a\x00", "field 3 more than 1 times"),
        (without_last_piece, "399 pieces where the settings say 400"),
        (lambda: model() + b"\x2a\x03\x12\x01x", "unexpected field 5"),
        (lambda: model() + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "where 0 are left"),
        (lambda: model() + b"\xff" * 12, "longer than 10 bytes"),
        (lambda: model() + b"\x0b", "wire type 3"),
    ],
)
def test_L5_a_crafted_model_is_refused_before_the_library_sees_it(data: object, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("handed to the library")

    crafted = data()
    monkeypatch.setattr(sentencepiece.SentencePieceProcessor, "LoadFromSerializedProto", never)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_bytes(crafted, "crafted.model")
    assert words in caught.value.message


def test_L5_every_cut_off_file_is_refused() -> None:
    for size in (*range(1, 400), *range(400, len(model()), 97), *range(len(model()) - 150, len(model()))):
        with pytest.raises(TokenizerError):
            Tokenizer.from_bytes(model()[:size], "cut.model")


FLIP_BITS = """
import random, sys
from pathlib import Path
from positron_mini.errors import TokenizerError
from positron_mini.text.tokenizer import Tokenizer, huggingface_files
model, rng, refused = Path(sys.argv[1]).read_bytes(), random.Random(5), 0
for _ in range(400):
    damaged = bytearray(model)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    try:
        tokenizer = Tokenizer.from_bytes(bytes(damaged), "damaged.model")
    except TokenizerError as error:
        refused += bool(error.message and error.hint)
    else:
        text = "Once upon a time\\n  Lily \\0 saw 7 \\U0001f600 boats."
        assert tokenizer.decode(tokenizer.encode(text)) == text
        huggingface_files(tokenizer, context_len=8, chat_template=None)
print(refused)
"""


def test_L5_flipped_bits_never_crash_the_process(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(model())
    run = in_a_process(FLIP_BITS, str(tmp_path / "m"))
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) > 360  # the rest are letters exchanged within a piece: only the fingerprint can tell


def test_L5_a_huge_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as handle:
        handle.truncate((64 << 20) + 5)
    with pytest.raises(TokenizerError, match="67,108,865 bytes or more, too large for a tokenizer"):  # one more than the limit, not five
        Tokenizer.load(tmp_path / "huge")


def test_O1_the_longest_piece_that_the_trainer_makes_is_read_and_a_longer_one_refused() -> None:
    doubling = train_tokenizer(["a" * 5_000] * 5, 267, threads=1)
    assert [piece.text for piece in doubling.pieces()[FIRST_NORMAL:]] == ["aa", "a" * 4, "a" * 8, "a" * 16, "a"]  # no 32
    message = sentencepiece_model_pb2.ModelProto.FromString(doubling.model_bytes)
    message.pieces.add(piece="a" * 17, score=-5.0)  # made of two others: 16 and 1
    message.trainer_spec.vocab_size += 1
    with pytest.raises(TokenizerError, match="has 17 characters, the recipe makes at most 16"):
        Tokenizer.from_bytes(message.SerializeToString(), "long.model")


@pytest.mark.parametrize("size", [400_000, 8_000_000])
def test_O1_a_piece_of_megabytes_is_refused_before_it_is_cut_or_decoded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[int] = []
    inner = model_file.splits
    monkeypatch.setattr(model_file, "splits", lambda text, texts: cuts.append(len(text)) or inner(text, texts))
    with pytest.raises(TokenizerError, match=r"a piece of [\d,]+ bytes, more than 128"):
        Tokenizer.from_bytes(with_piece(399, piece="a" * size), "long.model")
    assert cuts == []


@pytest.mark.parametrize("what", ["empty pieces", "empty sections", "settings", "fields of a piece"])
def test_O1_many_small_fields_are_refused_after_as_many_as_the_recipe_makes(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the largest size allowed would hold 32 million; each is a step in Python."""
    steps = 0
    inner = model_file.fields

    def counted(data: bytes) -> Iterator[model_file.Field]:
        nonlocal steps
        for field in inner(data):
            steps += 1
            yield field

    monkeypatch.setattr(model_file, "fields", counted)
    many = {
        "empty pieces": b"\x0a\0" * (4 << 20),
        "empty sections": b"\x22\0" * (4 << 20),
        "settings": b"\x12\x80\x80\x80\x04" + b"\x18\x02" * (4 << 20),  # a trainer section of 8 MB
        "fields of a piece": b"\x0a\x80\x80\x80\x04" + b"\x18\x01" * (4 << 20),
    }[what]
    with pytest.raises(TokenizerError):
        Tokenizer.from_bytes(model() + many, "many.model")
    assert steps <= (1 << 20) + 500


def test_saving_where_writing_is_not_possible_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(stat.S_IRUSR)
    with pytest.raises(PositronError):
        Tokenizer.from_bytes(model(), "m").save(tmp_path / "file" / "spm.model")
