"""The checker accepts what the world writes and sees what is wrong with anything else."""

from itertools import islice

import pytest

from helpers.faulty_stories import CORRUPTIONS, corrupted
from positron_mini.storyworld import check_next, check_story, retellings, stories

GOOD = """Once upon a time, there was a little fox named Rusty. Rusty had a red ball.
One sunny day, Rusty took the ball to the park. On the way, Rusty lost the ball. He was sad because the ball was gone.
Suddenly, a young girl named Mia came along. Mia asked, "What is wrong, Rusty?" "I lost my ball," said Rusty.
Soon, Mia looked under a bush and found the ball. Mia gave the ball back to Rusty. Rusty was happy because the ball was back.
Rusty was happy, and that was the end of a good day.""".replace("On the way, Rusty lost", "But on the way, Rusty lost")


@pytest.fixture(scope="module")
def told():
    return list(islice(stories(2), 1_500))


def test_every_generated_story_is_consistent_and_read_to_the_end(told):
    for one in told:
        verdict = check_story(one.text)
        assert verdict.consistent, (verdict.reasons, one.text)
        assert verdict.parsed_share == 1.0


def test_a_story_written_by_hand_is_consistent():
    verdict = check_story(GOOD)
    assert verdict.consistent, verdict.reasons


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("He was sad", "She was sad", "Rusty is he, not she"),
        ("Mia gave the ball back to Rusty", "Rusty gave the ball back to Mia", "holder ball = Rusty does not hold"),
        ("found the ball", "found the kite", "no kite was mentioned"),
        ("said Rusty", "said Bruno", "Bruno was not introduced"),
        ("Rusty had a red ball.", "Rusty had a red ball. Rusty was very happy.", "mood Rusty = happy does not hold"),
        ("took the ball to the park", "took the blue ball to the park", "cannot be read"),
        ("Soon, Mia looked under a bush and found the ball. ", "", "problem = solved does not hold"),
        ("a little fox named Rusty", "a little teapot named Rusty", "cannot be a teapot"),
        ("a red ball", "an red ball", "cannot be read"),
        ("Suddenly, a young girl named Mia", "Suddenly, a young boy named Mia", "Mia cannot be a boy"),
        ("\nRusty was happy, and that was the end of a good day.", "", "no ending"),
        ("Rusty took the ball to the park.", "Rusty ate the moon.", "cannot be read: One sunny day, Rusty ate the moon."),
    ],
)
def test_each_fault_is_named(old, new, reason):
    assert old in GOOD
    verdict = check_story(GOOD.replace(old, new, 1))
    assert not verdict.consistent
    assert any(reason in found for found in verdict.reasons), verdict.reasons


def test_sentences_that_cannot_be_read_lower_the_parsed_share():
    verdict = check_story("The stock market fell. Once upon a time, there was a little fox named Rusty. Colourless ideas sleep. He")
    assert verdict.parsed_share == 1 / 4
    assert not verdict.consistent
    assert check_story("").parsed_share == 0.0
    assert not check_story("").consistent


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_stories_are_seen(name, told):
    wrong = [text for one in told[:400] if (text := corrupted(one, name)) is not None][:100]
    assert len(wrong) > 25
    seen = sum(not check_story(text).consistent for text in wrong)
    # two who exchange places in a greeting or a game are still right, so that sort of change is not always a fault
    assert seen >= (0.7 if name == "exchanged_names" else 0.95) * len(wrong)


def test_next_sentences_are_judged_against_what_was_told(told):
    cuts = retellings(told[0])
    assert all(check_next(cut.beginning, cut.next_sentence) for cut in cuts)
    beginning = GOOD[: GOOD.index("Soon, Mia")]
    assert check_next(beginning, "Soon, Mia looked under a bush and found the ball.")
    assert not check_next(beginning, "Soon, Tim looked under a bush and found the ball.")
    assert not check_next(beginning, "And so on.")
    assert not check_next(beginning, "")
