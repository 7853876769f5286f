"""The information of a story: choices come back from the text, and their price is that of the generator."""

import math
from collections import Counter
from itertools import islice

import pytest

from positron_mini.storyworld import document, entropy_bits_per_byte, recover, request_for, stories
from positron_mini.storyworld.requests import OPENINGS
from positron_mini.storyworld.teller import Dice


def test_choices_come_back_from_the_text_alone():
    told = list(islice(stories(6), 120))
    assert {one.facts["arc"] for one in told} >= {"lost", "gift", "cook", "seed", "guilt"}
    for one in told:
        choices, nats = recover(one.text)
        assert choices == one.choices, one.text
        assert nats == pytest.approx(one.choice_nats)


def test_a_text_that_the_generator_cannot_write_has_no_choices():
    one = next(stories(6))
    for wrong in (one.text + " The end.", one.text[:-20], one.text.replace(one.facts["hero"], "Xaver"), ""):
        with pytest.raises(ValueError, match="cannot have made"):
            recover(wrong)


def test_entropy_is_the_sum_of_nats_over_the_bytes():
    told = list(islice(stories(6), 20))
    bits = sum(one.choice_nats for one in told) / math.log(2) + 20  # of each story, whether a wish stands before it
    bits += 10 * (math.log2(len(OPENINGS)) + 1)  # of each wish, how it begins and whether it names the hero
    bits -= sum(
        math.log2(0.85 if "event" in request_for(one).constraints else 0.15) for one in told[::2]
    )  # and whether it says what happens
    assert entropy_bits_per_byte(6, 20) == pytest.approx(bits / sum(len(document(one).encode()) for one in told))


class Fixed:
    """A source of the given numbers."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def test_dice_follow_their_weights_and_price_them():
    dice = Dice(Fixed(0.0, 0.24, 0.26, 0.999, 0.5))  # type: ignore[arg-type]
    assert [dice.weigh((1.0, 3.0)) for _ in range(4)] == [0, 0, 1, 1]
    assert dice.nats == pytest.approx(2 * math.log(4) + 2 * math.log(4 / 3))
    assert dice.pick(4) == 2
    assert dice.choices == [0, 0, 1, 1, 2]


def test_a_single_open_way_is_no_choice_and_a_closed_way_is_never_taken():
    dice = Dice(Fixed(0.999999, 0.0))  # type: ignore[arg-type]
    assert dice.weigh((0.0, 2.0, 0.0)) == 1
    assert dice.choices == []
    assert dice.weigh((1.0, 2.0, 0.0)) == 1
    assert dice.weigh((0.0, 2.0, 1.0)) == 1
    assert Counter(dice.choices) == {1: 2}
