"""Instruction rows from the story world: reading questions, wishes for a story, what happened next."""

from __future__ import annotations

import random

from positron_mini.storyworld.questions import questions, retellings
from positron_mini.storyworld.requests import request_for
from positron_mini.storyworld.tales import Split, Story, stable_number, story

SOURCE = "storyworld"
NEXT = ("What happened next?", "What happens next?", "What comes next in the story?", "How does the story go on?")
KINDS = ("question", "question", "request", "request", "request", "next")  # in these proportions


def instruction_rows(seed: int, n: int, split: Split = "train") -> list[dict[str, str]]:
    """`n` rows {"instruction", "input", "output", "source"}, each about a story of its own; the two splits share no story."""
    return [_row(story(seed, index, split), KINDS[index % len(KINDS)]) for index in range(n)]


def _row(told: Story, kind: str) -> dict[str, str]:
    dice = random.Random(stable_number(f"row {told.index} {told.text}"))
    if kind == "request":
        return _as_row(request_for(told).text, "", told.text)
    if kind == "next":
        cuts = retellings(told)
        cut = cuts[len(cuts) // 3 + int(dice.random() * (len(cuts) - len(cuts) // 3))]
        return _as_row(NEXT[int(dice.random() * len(NEXT))], cut.beginning, cut.next_sentence)
    asked = questions(told)
    question = asked[int(dice.random() * len(asked))]
    return _as_row(question.text, told.text, question.answer)


def _as_row(instruction: str, given: str, output: str) -> dict[str, str]:
    return {"instruction": instruction, "input": given, "output": output, "source": SOURCE}


def conversation_rows(seed: int, n: int, split: Split = "train", questions_per_story: int = 6) -> list[dict[str, object]]:
    """`n` rows like `instruction_rows`, but with several questions about a story in one conversation: {"messages", "source"}.

    Most of the cost is reading the story; every further question about it trains more answers for little more work.
    """
    return [_conversation(story(seed, index, split), KINDS[index % len(KINDS)], questions_per_story) for index in range(n)]


def _conversation(told: Story, kind: str, most: int) -> dict[str, object]:
    if kind != "question":
        return {**_row(told, kind)}
    asked = questions(told)
    random.Random(stable_number(f"talk {told.index} {told.text}")).shuffle(asked)
    messages = []
    for i, question in enumerate(asked[:most]):
        messages.append({"role": "user", "content": f"{told.text}\n{question.text}" if i == 0 else question.text})
        messages.append({"role": "assistant", "content": question.answer})
    return {"messages": messages, "source": SOURCE}
