"""Suites whose answers code can check: reading comprehension and requests, on story-world stories that are in no training text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from positron_mini import storyworld
from positron_mini.chat.formats import join_input
from positron_mini.config import SampleConfig
from positron_mini.evaluate.interval import wilson
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.store.checkpoint import Checkpoint
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS

READING_ITEMS, REQUEST_ITEMS = 500, 200
READING = SampleConfig(max_tokens=32, temperature=0.0)
REQUESTS = SampleConfig(max_tokens=400, temperature=0.3)


@dataclass(frozen=True, eq=False)
class Item:
    """One task: its prompt, its kind, and the judge of a reply."""

    prompt: str
    kind: str
    is_right: Callable[[str], bool]


def tally(outcomes: Iterable[bool]) -> dict[str, float | int]:
    """items, accuracy and its 95 % interval as low and high."""
    known = list(outcomes)
    low, high = wilson(sum(known), len(known))
    return {"items": len(known), "accuracy": sum(known) / max(len(known), 1), "low": low, "high": high}


def reading_items(count: int, seed: int = 0) -> Iterator[Item]:
    """Questions about validation stories, one or two a story, so that every kind occurs."""
    made = 0
    for index, story in enumerate(storyworld.stories(seed, split="validation")):
        asked = storyworld.questions(story)
        chosen = (asked[index % len(asked)], asked[(7 * index + 3) % len(asked)]) if asked else ()
        for question in dict.fromkeys(chosen):  # a set has another order in every process
            if made == count:
                return
            made += 1
            yield Item(join_input(question.text, story.text), question.kind, lambda reply, q=question: storyworld.check_answer(q, reply))  # type: ignore[misc]


def request_items(count: int, seed: int = 0) -> Iterator[Item]:
    """Requests for a story; a story is right if the checker can follow it and it meets every constraint."""
    for request in storyworld.requests(seed, count):
        yield Item(request.text, request.constraints["event"], lambda reply, r=request: storyworld.check_request(r, reply))  # type: ignore[misc]


def chance_of(items: list[Item], replies: list[str]) -> float:
    """How often the reply to one task is also right for another of its kind: the accuracy of answering without reading."""
    by_kind: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        by_kind.setdefault(item.kind, []).append(i)
    right = 0
    for members in by_kind.values():
        shifted = members[1:] + members[:1]
        right += sum(items[i].is_right(replies[j]) for i, j in zip(members, shifted, strict=True) if i != j)
    return right / max(len(items), 1)


def run_suite(
    name: str, model: GPT, checkpoint: Checkpoint, *, items: int | None = None, done: Callable[[int, int], None] = lambda _i, _n: None
) -> dict[str, object]:
    """The result of a suite: {"suite", "items", "accuracy", "low", "high", "chance", "by_kind"}; `done` gets (finished, all)."""
    make, usual, settings = (reading_items, READING_ITEMS, READING) if name == "reading" else (request_items, REQUEST_ITEMS, REQUESTS)
    tasks = list(make(usual if items is None else items))
    replies = []
    for i, task in enumerate(tasks, 1):
        prompt = prompt_ids(checkpoint, task.prompt)
        replies.append(generate(model, checkpoint.tokenizer, prompt, settings, end_ids=checkpoint.end_ids)[0].text)
        done(i, len(tasks))
    right = {task: task.is_right(reply) for task, reply in zip(tasks, replies, strict=True)}
    by_kind = {kind: tally(is_right for task, is_right in right.items() if task.kind == kind) for kind in sorted({t.kind for t in tasks})}
    return {"suite": name, **tally(right.values()), "chance": chance_of(tasks, replies), "by_kind": by_kind}


def prompt_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """The prompt ids for `text`: a user's message for a chat model; for a base model the beginning of a text that the answer continues."""
    if checkpoint.is_chat:
        return encode_chat(checkpoint.tokenizer, [Message("user", text)], add_generation_prompt=True).ids
    return [BOS, *checkpoint.tokenizer.encode(f"{text}\n")]
