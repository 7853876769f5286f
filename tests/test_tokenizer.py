"""Encoding and decoding: exact round trips, no control id from any text, one decoder equal to the other."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import positron_mini.text.tokenizer.spm as spm
from helpers.texts import AWKWARD_TEXTS, LOOKALIKES, made_stories, real_stories, repetitive_tokenizer, story_tokenizer, texts
from positron_mini.errors import TokenizerError
from positron_mini.text.tokenizer import BOS, EOS, IM_END, IM_START, PAD, UNK, IncrementalDecoder, WordEncoder, train_tokenizer


@given(texts)
def test_D3_decoding_an_encoded_text_gives_it_back(text: str) -> None:
    expected = text.replace("\u2581", " ")
    assert story_tokenizer().decode(story_tokenizer().encode(text)) == expected


@pytest.mark.parametrize("text", ["\0", "a\0b", "\0\0", "\x00\n\x1f\x7f", *LOOKALIKES, "\u2585", "\u2047", " lead", "trail ", "\ufeffmark"])
def test_special_characters_round_trip(text: str) -> None:
    assert story_tokenizer().decode(story_tokenizer().encode(text)) == text


def test_D3_awkward_texts_round_trip() -> None:
    assert len(set(AWKWARD_TEXTS)) == 300
    for text in AWKWARD_TEXTS:
        assert story_tokenizer().decode(story_tokenizer().encode(text)) == text


@given(texts)
def test_S12_user_text_never_becomes_a_control_token(text: str) -> None:
    tokenizer = story_tokenizer()
    assert not set(tokenizer.encode(text)) & (tokenizer.control_ids | {UNK})


@pytest.mark.parametrize("marker", LOOKALIKES)
def test_a_marker_in_the_training_text_stays_ordinary_text(marker: str) -> None:
    tokenizer = train_tokenizer([f"{marker}user {marker} hello{marker}"] * 50, 282, threads=1)
    assert len({piece.text for piece in tokenizer.pieces()}) == 282
    ids = tokenizer.encode(f"{marker} hello {marker}")
    assert not set(ids) & (tokenizer.control_ids | {UNK})
    assert tokenizer.decode(ids) == f"{marker} hello {marker}"


def test_fixed_ids_stand_where_the_recipe_puts_them() -> None:
    tokenizer = story_tokenizer()
    assert (UNK, BOS, EOS, PAD, tokenizer.im_start_id, tokenizer.im_end_id) == (0, 1, 2, 3, 4, 5)
    assert tokenizer.control_ids == {1, 2, 3, 4, 5}
    assert [tokenizer.piece(id) for id in range(6)] == ["<unk>", "<s>", "</s>", "<pad>", IM_START, IM_END]
    assert [piece.kind for piece in tokenizer.pieces()[:7]] == ["unknown", *["control"] * 5, "byte"]
    assert tokenizer.piece(6 + 10) == "<0x0A>"
    assert {piece.kind for piece in tokenizer.pieces()[262:]} == {"normal"}
    assert len(tokenizer.pieces()) == tokenizer.vocab_size == 600


def test_a_newline_is_one_byte_piece_wherever_it_stands() -> None:
    tokenizer = story_tokenizer()
    assert tokenizer.encode("\n") == [16]
    assert tokenizer.encode("The end.\n\nOnce") == [*tokenizer.encode("The end."), 16, 16, *tokenizer.encode("Once")]
    assert not [piece.text for piece in tokenizer.pieces() if set(piece.text) & set("\n\r\t\0")]


def test_the_lower_block_character_counts_as_a_space() -> None:
    assert story_tokenizer().encode("a\u2581b\u2581\u2581") == story_tokenizer().encode("a b  ")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_a_lone_surrogate_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(TokenizerError, match="surrogate") as caught:
        story_tokenizer().encode(text)
    assert caught.value.hint
    with pytest.raises(TokenizerError, match="surrogate"):
        story_tokenizer().encode_many(["fine", text])


def test_a_document_is_bos_text_without_outer_newlines_eos() -> None:
    tokenizer = story_tokenizer()
    assert tokenizer.encode_document("\r\n\n Once \n upon\r\n") == [1, *tokenizer.encode(" Once \n upon"), 2]
    assert tokenizer.encode_document("\n") == [1, 2]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_encoding_many_equals_encoding_each(threads: int) -> None:
    tokenizer = story_tokenizer()
    assert tokenizer.encode_many(AWKWARD_TEXTS, threads) == [tokenizer.encode(text) for text in AWKWARD_TEXTS]
    assert tokenizer.encode_many([]) == []
    assert tokenizer.encode_many(["", "a"]) == [[], tokenizer.encode("a")]


@given(st.text(alphabet="ab \n1é\u2581", max_size=80), st.integers(1, 9))
def test_a_long_text_encoded_in_parts_equals_the_whole(text: str, limit: int) -> None:
    for tokenizer in (repetitive_tokenizer(), story_tokenizer()):
        whole = tokenizer.encode(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spm, "_MAX_CHARS_AT_ONCE", limit)
            assert tokenizer.encode(text) == whole
            assert tokenizer.encode_many([text, "a"]) == [whole, tokenizer.encode("a")]


def test_D3_a_line_of_megabytes_is_encoded_in_parts_and_comes_back() -> None:
    line = " ".join(made_stories(4000)).replace("\n", " ")
    tokenizer = story_tokenizer()
    assert len(line) > 1_000_000
    assert len(list(tokenizer._parts(line))) > 10
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_control_ids_and_the_unknown_decode_to_nothing() -> None:
    tokenizer = story_tokenizer()
    assert tokenizer.decode([0, 1, *tokenizer.encode("a"), 4, 5, 3, *tokenizer.encode(" b"), 2]) == "a b"
    assert tokenizer.decode([]) == ""


def test_invalid_bytes_decode_to_the_replacement_character() -> None:
    euro = [6 + byte for byte in "€".encode()]
    decode = story_tokenizer().decode
    assert decode(euro) == "€"
    assert decode(euro[:2]) == "\ufffd"
    assert decode([6 + 0xFF, 6 + 65]) == "\ufffdA"
    assert decode([*euro[:2], 6 + 66]) == "\ufffdB"


@settings(max_examples=200)
@given(st.lists(st.one_of(st.integers(0, 599), st.integers(6 + 0x80, 6 + 0xFF), st.sampled_from([0, 1, 2, 3, 4, 5])), max_size=40))
def test_incremental_decoding_equals_decoding_at_once(ids: list[int]) -> None:
    tokenizer = story_tokenizer()
    decoder = IncrementalDecoder(tokenizer)
    for _ in range(2):  # the second round shows that flush leaves nothing behind
        assert "".join([*map(decoder.push, ids), decoder.flush()]) == tokenizer.decode(ids)


def test_incremental_decoding_holds_back_an_unfinished_character() -> None:
    decoder = IncrementalDecoder(story_tokenizer())
    pushed = [decoder.push(6 + byte) for byte in "a😀 é".encode()]
    assert pushed == ["a", "", "", "", "😀", " ", "", "é"]
    assert decoder.push(story_tokenizer().encode(" the")[0]).startswith(" ")
    assert decoder.push(6 + 0xF0) == ""
    assert decoder.push(EOS) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


@pytest.mark.parametrize("id", [-1, 600, 65_535, 65_536, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused(id: int) -> None:
    for use in (
        lambda: story_tokenizer().decode([id]),
        lambda: story_tokenizer().piece(id),
        lambda: IncrementalDecoder(story_tokenizer()).push(id),
    ):
        with pytest.raises(TokenizerError, match="600 pieces"):
            use()


def test_a_tokenizer_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        story_tokenizer().vocab_size = 5
    story_tokenizer().pieces().clear()
    assert len(story_tokenizer().pieces()) == 600


def test_one_tokenizer_serves_many_threads() -> None:
    tokenizer, results = story_tokenizer(), [[] for _ in range(4)]
    workers = [threading.Thread(target=lambda out=out: out.extend(tokenizer.encode(text) for text in AWKWARD_TEXTS)) for out in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(result == tokenizer.encode_many(AWKWARD_TEXTS) for result in results)


def test_real_stories_round_trip_and_compress() -> None:
    stories = real_stories("tinystories-valid.txt")
    tokenizer = train_tokenizer(stories, 2000, threads=1)
    ids = tokenizer.encode_many(stories)
    assert [tokenizer.decode(row) for row in ids] == stories
    assert sum(len(story.encode()) for story in stories) / sum(map(len, ids)) > 3.3  # bytes per token


@pytest.mark.parametrize("unit", ["a", "aab", " ", "\n", "\U0001f600", "x7"])
def test_O1_a_text_without_a_place_to_cut_takes_time_by_its_length_not_by_its_square(unit: str) -> None:
    tokenizer = repetitive_tokenizer()

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        began = time.process_time()
        tokenizer.encode(text)
        WordEncoder(tokenizer).encode([text])
        return time.process_time() - began

    small, large = seconds(1 << 16), seconds(1 << 20)
    assert large < 16 * 8 * max(small, 0.01)  # 16 times the text; its square would be 256 times the work


def test_O1_a_stretch_without_a_place_to_cut_is_encoded_a_million_characters_at_once() -> None:
    text = "b " + "a" * (5 << 19) + " b" * 40_000  # aa is a piece: nowhere between two of them is a place to cut
    tokenizer = repetitive_tokenizer()
    parts = list(tokenizer._parts(text))
    assert "".join(parts) == text and max(map(len, parts)) <= (1 << 20) + (1 << 16)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet="ab \u00e9", max_size=120))
def test_O1_where_a_long_stretch_is_cut_depends_on_the_stretch_alone(text: str) -> None:
    tokenizer = repetitive_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spm, "_MAX_CHARS_AT_ONCE", 4)
        patch.setattr(spm, "_MAX_UNBROKEN_CHARS", 7)
        ids, _ = WordEncoder(tokenizer).encode([text])  # which asks for the ids of each word by itself
        assert ids.tolist() == tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert all(len(part) <= 7 + 4 for part in tokenizer._parts(text))
