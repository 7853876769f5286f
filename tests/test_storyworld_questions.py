"""Questions have one right answer, wishes are checked by what happens in the story."""

from itertools import islice, pairwise

import pytest

from positron_mini.storyworld import Question, Request, check_answer, check_request, questions, request_for, requests, retellings, stories

WHO = Question("Who found the ball?", "Mia found the ball.", "who", ("Mia",), ("Rusty",))
WHY = Question("Why was Tim sad?", "Because the kite was lost.", "why", ("kite&lost", "lost it"))


@pytest.fixture(scope="module")
def told():
    return list(islice(stories(9), 300))


@pytest.mark.parametrize("reply", ["Mia found the ball.", "mia", "It was Mia!", "The ball was found by Mia."])
def test_right_answers_are_accepted(reply):
    assert check_answer(WHO, reply)


@pytest.mark.parametrize("reply", ["", "Rusty found the ball.", "Mia and Rusty", "Not Mia.", "Mialina", "the ball"])
def test_wrong_answers_are_refused(reply):
    assert not check_answer(WHO, reply)


def test_all_parts_of_a_reason_must_be_said():
    assert check_answer(WHY, "He was sad because he had lost his kite.")
    assert check_answer(WHY, "Tim lost it.")
    assert not check_answer(WHY, "Because of the kite.")
    assert not check_answer(WHY, "Because it was late.")


def test_each_answer_of_the_world_is_right_and_answers_of_other_questions_are_mostly_wrong(told):
    asked = [question for one in told for question in questions(one)]
    assert all(check_answer(question, question.answer) for question in asked)
    pairs = [(question, other) for question, other in zip(asked, asked[50:], strict=False) if question.kind == other.kind]
    crossed = [check_answer(question, other.answer) for question, other in pairs]
    assert len(crossed) > 100
    same_feeling = sum(question.kind == "feeling" for question in asked) / len(asked)
    assert sum(crossed) / len(crossed) < 0.25 + same_feeling


def test_every_story_has_questions_and_most_sorts_occur(told):
    assert all(len(questions(one)) >= 3 for one in told)
    kinds = {question.kind for one in told for question in questions(one)}
    assert kinds == {"who", "what", "where", "why", "kind", "feeling", "fear", "food"}


def test_a_question_has_one_answer_in_its_story(told):
    for one in told:
        texts = [question.text for question in questions(one)]
        assert len(set(texts)) == len(texts)


def test_a_story_fulfils_its_own_wish_and_no_story_of_another_arc_does(told):
    for one, other in pairwise(told):
        request = request_for(one)
        assert check_request(request, one.text), request
        arcs = {one.facts["arc"], other.facts["arc"]}
        if "event" in request.constraints and len(arcs) == 2 and arcs != {"guilt", "broken"}:
            assert not check_request(request, other.text)


def test_a_wish_asks_for_hero_event_and_object():
    text = (
        "Once upon a time, there was a little robot named Beep. Beep had a golden key.\n"
        "One sunny day, Beep took the key to the park. But on the way, Beep lost the key."
    )
    wanted = {"kind": "robot", "event": "lose", "role": "A", "object": "key"}
    made = Request("Write a short story about a robot who loses a key.", wanted)
    assert check_request(made, text)
    assert not check_request(made, text.replace("robot", "fox").replace("Beep", "Rusty"))
    assert not check_request(made, text.replace("key", "kite"))
    assert not check_request(made, text[: text.index("But on")])
    assert not check_request(made, "")


def test_wishes_are_different_and_reproducible():
    assert requests(3, 50) == requests(3, 50)
    assert len({request.text for request in requests(3, 50)}) == 50


def test_a_retelling_goes_on_where_it_was_cut(told):
    for cut in retellings(told[0]):
        rest = told[0].text[len(cut.beginning) :].lstrip()
        assert rest.startswith(cut.next_sentence)
