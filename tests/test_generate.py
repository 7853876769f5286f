"""Laws of the samplers, of the text they make, and of the loop that reads beyond the context."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.models import lively_model, shape
from positron_mini.config import SampleConfig
from positron_mini.generate import (
    TextStream,
    discourage,
    distribution,
    draw,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    milestone_samples,
    penalise,
    stream,
)
from positron_mini.model import GPT, KVCache
from positron_mini.text.tokenizer import BOS, UNK, Tokenizer

NONE = torch.tensor([], dtype=torch.long)
PLAIN = SampleConfig(temperature=1.0)


def kept(logits: Tensor) -> list[int]:
    return [i for i, value in enumerate(logits.tolist()) if value != -math.inf]


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# --- samplers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "wanted"), [(0, [0, 1, 2, 3, 4]), (1, [1, 3]), (2, [1, 3]), (3, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_the_largest_and_whatever_ties_with_the_last_of_them(k: int, wanted: list[int]) -> None:
    logits = torch.tensor([1.0, 3.0, -2.0, 3.0, 1.0])
    assert kept(keep_top_k(logits, k)) == wanted
    assert torch.equal(keep_top_k(logits, k)[wanted], logits[wanted])


@pytest.mark.parametrize(
    ("shares", "p", "wanted"),
    [
        ((0.25, 0.125, 0.5, 0.125), 0.0, [2]),  # the likeliest always stays
        ((0.25, 0.125, 0.5, 0.125), 0.4, [2]),
        ((0.25, 0.125, 0.5, 0.125), 0.6, [0, 2]),  # 0.5 is below, the token that crosses is kept
        ((0.25, 0.125, 0.5, 0.125), 0.8, [0, 1, 2]),
        ((0.25, 0.125, 0.5, 0.125), 0.95, [0, 1, 2, 3]),
        ((0.25, 0.125, 0.5, 0.125), 1.0, [0, 1, 2, 3]),
        ((0.5, 0.25, 0.125, 0.125), 0.74, [0, 1]),  # and no more than it needs
        ((0.5, 0.25, 0.125, 0.125), 0.76, [0, 1, 2]),
    ],
)
def test_top_p_keeps_the_token_that_crosses(shares: tuple[float, ...], p: float, wanted: list[int]) -> None:
    assert kept(keep_top_p(logits_of(*shares), p)) == wanted


@pytest.mark.parametrize(("p", "wanted"), [(0.0, [0, 1, 2, 3]), (0.2, [0, 1, 2, 3]), (0.3, [0, 2, 3]), (0.6, [2]), (1.0, [2])])
def test_min_p_is_relative_to_the_likeliest(p: float, wanted: list[int]) -> None:
    assert kept(keep_min_p(logits_of(0.2, 0.1, 0.4, 0.2), p)) == wanted


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 0.0, 3.0])
    assert penalise(logits, torch.tensor([0, 1, 1, 2]), 2.0).tolist() == [1.0, -4.0, 0.0, 3.0]
    assert penalise(logits, torch.tensor([0, 1]), 0.5).tolist() == [4.0, -1.0, 0.0, 3.0]
    assert penalise(logits, torch.tensor([0]), 1.0).tolist() == logits.tolist()
    assert penalise(logits, NONE, 2.0).tolist() == logits.tolist()


def test_what_was_written_is_discouraged_once_and_for_each_time() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, -math.inf]])
    written = torch.tensor([[0, 0, 1, 3]])
    assert discourage(logits, written, presence=0.5, frequency=0.25).tolist() == [[1.0, -2.75, 0.0, -math.inf]]
    assert discourage(logits, written, presence=-1.0, frequency=0.0).tolist() == [[3.0, -1.0, 0.0, -math.inf]]
    assert discourage(logits, written[:, :0], presence=2.0, frequency=2.0) is logits
    assert discourage(logits, written, presence=0.0, frequency=0.0) is logits


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.75), (-1.0, 0.5)])
def test_penalties_count_what_was_written_and_not_the_prompt(tiny_tokenizer: Tokenizer, presence: float, frequency: float) -> None:
    model = lively_model(shape())
    config = SampleConfig(max_tokens=20, temperature=0.0, presence_penalty=presence, frequency_penalty=frequency)
    ids = [BOS, *tiny_tokenizer.encode("Once upon a time, a time")]
    (found,) = generate(model, tiny_tokenizer, ids, config)
    written: list[int] = []
    for _ in found.token_ids:
        row = model(torch.tensor([[*ids, *written]]))[0, -1].tolist()
        for index in (tiny_tokenizer.control_ids | {UNK}) - {2}:
            row[index] = -math.inf
        scores = [value - (presence if i in written else 0) - frequency * written.count(i) for i, value in enumerate(row)]
        written.append(scores.index(max(scores)))
    plain = replace(config, presence_penalty=0, frequency_penalty=0)
    assert written == found.token_ids != generate(model, tiny_tokenizer, ids, plain)[0].token_ids


def test_settings_apply_in_the_stated_order() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    penalised = distribution(logits, torch.tensor([0]), replace(PLAIN, repetition_penalty=3.0, temperature=0.0))
    assert penalised.tolist() == [0, 1, 0, 0]
    cold = distribution(logits, NONE, replace(PLAIN, temperature=0.5))
    weights = [math.exp(2 * x) for x in (3, 2, 1, 0)]
    assert cold.tolist() == pytest.approx([w / sum(weights) for w in weights])
    # flattened by the temperature 0.6 is reached by three tokens; before it, by one
    assert kept(distribution(logits, NONE, replace(PLAIN, temperature=10.0, top_p=0.6)).log()) == [0, 1, 2]
    # top-p counts within what top-k left: 0.73 and 0.27
    assert kept(distribution(logits, NONE, replace(PLAIN, top_k=2, top_p=0.7)).log()) == [0]


def test_temperature_zero_is_greedy_and_takes_the_first_of_a_tie() -> None:
    assert distribution(torch.tensor([1.0, 5.0, 5.0]), NONE, replace(PLAIN, temperature=0.0)).tolist() == [0, 1, 0]


@settings(max_examples=60)
@given(
    st.lists(st.integers(-240, 240).map(lambda eighths: eighths / 8), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 5),
)
def test_every_distribution_is_one_and_keeps_the_likeliest(
    raw: list[float], k: int, top_p: float, min_p: float, temperature: float
) -> None:
    config = SampleConfig(temperature=temperature, top_k=k, top_p=top_p, min_p=min_p)
    found = distribution(torch.tensor(raw), NONE, config)
    assert float(found.sum()) == pytest.approx(1.0) and float(found.min()) >= 0
    assert float(found[torch.tensor(raw).argmax()]) == float(found.max()) > 0


@settings(max_examples=200)
@given(st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 1.0]), min_size=1, max_size=8).filter(any), st.floats(0, 1, exclude_max=True))
def test_draw_equals_the_naive_search_and_never_returns_probability_zero(weights: list[float], uniform: float) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64)
    probabilities /= probabilities.sum()
    (token,) = draw(probabilities[None], [uniform])
    assert probabilities[token] > 0
    target, total = uniform * float(probabilities.cumsum(0)[-1]), probabilities.cumsum(0).tolist()
    assert token == next(
        (i for i, reached in enumerate(total) if reached > target), max(i for i, w in enumerate(weights) if probabilities[i] > 0)
    )


def test_a_product_that_rounds_up_to_the_whole_still_draws_a_possible_token() -> None:
    assert draw(torch.tensor([[0.0, 5e-324, 0.0]], dtype=torch.float64), [0.9]) == [1]  # 0.9 x 5e-324 rounds to 5e-324


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    probabilities = torch.tensor([0.25, 0.0, 0.6, 0.15]).expand(1000, -1)
    counts = torch.bincount(torch.tensor(draw(probabilities, [(i + 0.5) / 1000 for i in range(1000)])))
    assert [abs(found - wanted) <= 1 for found, wanted in zip(counts.tolist(), [250, 0, 600, 150], strict=True)] == [True] * 4
    assert counts[1] == 0


# --- text --------------------------------------------------------------------------------------------------------------------------


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` as byte pieces, so that every character is cut as finely as it can be."""
    ids = {piece.text: i for i, piece in enumerate(tokenizer.pieces())}
    return [ids[f"<0x{byte:02X}>"] for byte in text.encode()]


def streamed(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...]) -> list[str]:
    texts = TextStream(tokenizer, stops)
    return [*(texts.push(token) for token in ids), texts.flush()]


def cut_before_stop(text: str, stops: tuple[str, ...]) -> str:
    """The twin: character by character, until a stop string is complete."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))]
    return text


ALPHABET = st.text(st.sampled_from("abé😀 "), max_size=14)
STOPS = st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=4), max_size=3).map(tuple)


@settings(max_examples=150)
@given(text=ALPHABET, stops=STOPS)
def test_a_stop_string_never_leaks_a_character(tiny_tokenizer: Tokenizer, text: str, stops: tuple[str, ...]) -> None:
    expected = cut_before_stop(text, stops)
    shown = ""
    for part in streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, text), stops):
        shown += part
        assert expected.startswith(shown), (shown, expected)
    assert shown == expected


@settings(max_examples=100)
@given(text=ALPHABET, stops=STOPS)
def test_the_text_does_not_depend_on_how_it_is_cut_into_tokens(tiny_tokenizer: Tokenizer, text: str, stops: tuple[str, ...]) -> None:
    assert "".join(streamed(tiny_tokenizer, tiny_tokenizer.encode(text), stops)) == cut_before_stop(text, stops)


class WholeDecoder:
    """A tokenizer whose every token is a longer piece of text."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def _bytes_of(self, index: int) -> bytes:
        return self.pieces[index].encode()


@pytest.mark.parametrize("pieces", [["abcd"], ["ab", "cd"], ["a", "b", "c", "d"], ["abc", "d"]])
def test_of_two_stop_strings_the_one_that_is_complete_first_counts(pieces: list[str]) -> None:
    texts = TextStream(WholeDecoder(*pieces), ("abcd", "bc"))  # type: ignore[arg-type]
    assert "".join([*(texts.push(i) for i in range(len(pieces))), texts.flush()]) == "a"


def test_a_character_is_held_back_until_it_is_whole(tiny_tokenizer: Tokenizer) -> None:
    assert streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, "é😀"), ()) == ["", "é", "", "", "", "😀", ""]
    assert streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, "😀")[:2], ()) == ["", "", "\ufffd"]


def test_the_beginning_of_a_stop_string_is_held_back_and_released(tiny_tokenizer: Tokenizer) -> None:
    assert streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, "a<|b"), ("<|im",)) == ["a", "", "", "<|b", ""]
    assert streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, "a<|"), ("<|im",)) == ["a", "", "", "<|"]
    assert streamed(tiny_tokenizer, byte_ids(tiny_tokenizer, "a<|imx"), ("<|im",)) == ["a", "", "", "", "", "", ""]


# --- the loop ----------------------------------------------------------------------------------------------------------------------


class Scripted(GPT):
    """A model that wants to write `script` after its prompt, or, without one, any token alike; it notes what it reads."""

    def __init__(self, script: list[int] | None = None, prompt: int = 1, **changes: int) -> None:
        super().__init__(shape(n_layer=1, **changes))
        self.script, self.prompt, self.reads = script, prompt, list[list[list[int]]]()

    def hidden(self, ids: Tensor, cache: KVCache | None = None, segments: Tensor | None = None) -> Tensor:
        assert cache is not None
        self.reads.append(ids.tolist())
        cache.length += ids.shape[1]
        assert cache.length <= self.config.context_len
        return torch.full((*ids.shape, 1), float(cache.length - self.prompt))

    def logits(self, hidden: Tensor) -> Tensor:
        found = torch.zeros(len(hidden), self.config.vocab_size)
        if self.script is not None:
            found[:, self.script[int(hidden[0, 0]) % len(self.script)]] = 50.0
        return found


GREEDY = SampleConfig(temperature=0.0, max_tokens=12)


def test_greedy_generation_equals_taking_the_largest_uncached_logit(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    prompt = [BOS, *tiny_tokenizer.encode("Once upon a time")]
    (found,) = generate(tiny_model, tiny_tokenizer, "Once upon a time", GREEDY)
    ids = list(prompt)
    forbidden = torch.tensor(sorted({UNK} | tiny_tokenizer.control_ids - {2}))
    for token, logprob in zip(found.token_ids, found.logprobs, strict=True):
        logits = tiny_model(torch.tensor([ids]))[0, -1].detach()
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-5)
        assert token == int(logits.index_fill(0, forbidden, -math.inf).argmax())
        ids.append(token)
    assert found.prompt_token_ids == prompt and found.text == tiny_tokenizer.decode([t for t in found.token_ids if t != 2])
    assert len(found.token_ids) == 12 or found.token_ids[-1] == 2


def test_equal_seeds_give_equal_text_and_sample_i_does_not_depend_on_n(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    config = SampleConfig(temperature=1.0, max_tokens=16, seed=9)
    five = [sample.token_ids for sample in generate(tiny_model, tiny_tokenizer, "A dog", config, n=5)]
    torch.manual_seed(77)
    assert [sample.token_ids for sample in generate(tiny_model, tiny_tokenizer, "A dog", config, n=5)] == five
    for n in (1, 3):
        assert [sample.token_ids for sample in generate(tiny_model, tiny_tokenizer, "A dog", config, n=n)] == five[:n]
    assert len({tuple(ids) for ids in five}) == 5
    assert generate(tiny_model, tiny_tokenizer, "A dog", replace(config, seed=10))[0].token_ids != five[0]


def test_a_sample_that_ended_leaves_the_others_alone(tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape())
    with torch.no_grad():
        model.model.embed_tokens.weight[2] *= 3  # eos comes often and at different times
    config = SampleConfig(temperature=1.5, max_tokens=20, seed=1)
    together = generate(model, tiny_tokenizer, [BOS, 300], config, n=6)
    assert len({len(sample.token_ids) for sample in together}) > 1
    for count in range(1, 6):
        assert generate(model, tiny_tokenizer, [BOS, 300], config, n=count)[-1].token_ids == together[count - 1].token_ids
    for sample in together:
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] == 2) and 2 not in sample.token_ids[:-1]


def test_eos_ends_a_text_without_appearing_in_it(tiny_tokenizer: Tokenizer) -> None:
    word = tiny_tokenizer.encode("dog")
    model = Scripted([*word, 2, 300])
    (found,) = generate(model, tiny_tokenizer, [BOS], GREEDY)
    assert (found.text, found.finish_reason, found.token_ids) == ("dog", "stop", [*word, 2])
    tokens = list(stream(model, tiny_tokenizer, [BOS], GREEDY))
    assert [t.finish_reason for t in tokens] == [None] * len(word) + ["stop"]


@pytest.mark.parametrize(
    ("written", "settings", "last", "text", "reason", "count"),
    [
        ("ab.", {}, ".", "ab", "stop", 3),  # a piece that ends a text does not appear in it
        ("ab The end. c", {"max_tokens": 13, "stop": ("zzz", "The end")}, "", "ab ", "stop", 10),  # nor does a stop string
        ("ab<|\U0001f600", {"max_tokens": 4, "stop": ("<|im",)}, "", "ab<|", "length", 4),  # the last token flushes what was held back
        ("ab<|\U0001f600", {"max_tokens": 6}, "", "ab<|\ufffd", "length", 6),
    ],
)
def test_a_text_ends_at_a_word_a_stop_string_or_the_limit(
    tiny_tokenizer: Tokenizer, written: str, settings: dict[str, Any], last: str, text: str, reason: str, count: int
) -> None:
    ids = byte_ids(tiny_tokenizer, written)
    end_ids = {"end_ids": frozenset(byte_ids(tiny_tokenizer, last))} if last else {}
    (found,) = generate(Scripted(ids), tiny_tokenizer, [BOS], replace(GREEDY, **settings), **end_ids)
    assert (found.text, found.finish_reason, found.token_ids) == (text, reason, ids[:count])


def test_control_tokens_that_end_nothing_are_never_drawn(tiny_tokenizer: Tokenizer) -> None:
    config = SampleConfig(temperature=1.0, max_tokens=400, seed=4)
    endless = tiny_tokenizer.control_ids | {UNK}
    found = generate(Scripted(), tiny_tokenizer, [BOS], config, n=8, end_ids=frozenset())
    drawn = {token for sample in found for token in sample.token_ids}
    assert not drawn & endless and len(drawn) > 450
    chat = generate(Scripted(), tiny_tokenizer, [BOS], config, n=8, end_ids=frozenset({2, tiny_tokenizer.im_end_id}))
    ends = {sample.token_ids[-1] for sample in chat if sample.finish_reason == "stop"}
    assert ends and ends <= {2, tiny_tokenizer.im_end_id}


def test_beyond_the_context_reading_goes_on_from_bos_and_the_newest_three_quarters(tiny_tokenizer: Tokenizer) -> None:
    model = Scripted([40, 41, 42, 43, 44, 45, 46, 47], prompt=4, context_len=8)
    (found,) = generate(model, tiny_tokenizer, [BOS, 10, 11, 12], replace(GREEDY, max_tokens=7))
    first = [40, 41, 42, 43, 44]
    assert model.reads[:5] == [[[BOS, 10, 11, 12]], [[40]], [[41]], [[42]], [[43]]]  # full: 4 + 4
    assert found.token_ids[:5] == first
    assert model.reads[5] == [[BOS, 12, *first]]
    assert [len(read[0]) for read in model.reads] == [4, 1, 1, 1, 1, 7, 1]


@pytest.mark.parametrize("length", [8, 9, 30])
def test_a_prompt_longer_than_the_context_is_read_from_bos_and_its_newest_three_quarters(tiny_tokenizer: Tokenizer, length: int) -> None:
    model = Scripted([50], context_len=8)
    prompt = [BOS, *range(100, 99 + length)]
    (found,) = generate(model, tiny_tokenizer, prompt, replace(GREEDY, max_tokens=2))
    expected = prompt if length == 8 else [BOS, *prompt[-6:]]
    assert model.reads[0] == [expected] and found.prompt_token_ids == prompt


def test_generation_past_the_context_equals_the_rule_without_a_cache(tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape(context_len=8))
    for n in (1, 3):
        config = SampleConfig(temperature=0.0 if n == 1 else 1.0, max_tokens=20, seed=2)
        for sample in generate(model, tiny_tokenizer, [BOS, 300, 301], config, n=n, end_ids=frozenset()):
            history, window = [BOS, 300, 301], [BOS, 300, 301]
            for token, logprob in zip(sample.token_ids, sample.logprobs, strict=True):
                if len(window) > 8:
                    window = [BOS, *history[-6:]]
                wanted = model(torch.tensor([window]))[0, -1].detach().log_softmax(-1)[token]
                assert logprob == pytest.approx(float(wanted), abs=1e-5)
                history.append(token)
                window.append(token)


def test_a_prompt_is_read_once_for_all_its_samples(tiny_tokenizer: Tokenizer) -> None:
    model = Scripted([60, 61, 62], prompt=3)
    generate(model, tiny_tokenizer, [BOS, 10, 11], replace(GREEDY, max_tokens=3), n=4)
    assert model.reads == [[[BOS, 10, 11]], [[60]] * 4, [[61]] * 4]


def test_an_empty_prompt_is_refused(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        next(stream(tiny_model, tiny_tokenizer, [], GREEDY))


def test_an_empty_text_is_a_prompt_of_bos(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    (found,) = generate(tiny_model, tiny_tokenizer, "", replace(GREEDY, max_tokens=1))
    assert found.prompt_token_ids == [BOS] and len(found.token_ids) == 1


def test_milestone_samples_are_drawn_each_with_its_own_seed(tiny_model: GPT, tiny_tokenizer: Tokenizer) -> None:
    config = SampleConfig(temperature=1.0, max_tokens=8, seed=5)
    found = milestone_samples(tiny_model, tiny_tokenizer, ["A dog", "A dog"], config)
    assert found == [generate(tiny_model, tiny_tokenizer, "A dog", replace(config, seed=5 + i))[0].text for i in range(2)]
    assert found[0] != found[1]
