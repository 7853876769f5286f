"""Does a conversation hold at its second and third turn? The share of story wishes that are met, by what was said before.

    python benchmarks/turn_taking.py --ckpt runs/a-sft/best [runs/b-sft/best ...] [--items 40] [--threads N]

The wishes are those of `positron eval --suite requests`: the checker reads the story and looks for hero and event. Before the wish the
model is asked other things and answers them itself, as in `positron chat`. Temperature 0.3; the seeds are the numbers of the
conversations, so every checkpoint gets the same ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice

from positron_mini import storyworld
from positron_mini.chat.model import read_model
from positron_mini.chat.session import ChatSession
from positron_mini.device import set_threads
from positron_mini.evaluate.interval import wilson
from positron_mini.evaluate.suites import REQUESTS, Item, request_items
from positron_mini.store.find import find_checkpoint
from positron_mini.storyworld.requests import a_or_an

TALK = (
    "Who are you?",
    "What is your name?",
    "Hello!",
    "How are you?",
    "What can you do?",
    "Thank you.",
    "Good morning.",
    "What do you like?",
)
NAME = "Positron Mini"


def situations(items: int) -> dict[str, list[tuple[list[str], Item]]]:
    """For each situation the conversations: what is asked before, and the task that is judged."""
    wishes = list(request_items(2 * items))
    told, judged = wishes[items:], wishes[:items]
    talk = list(islice(cycle(TALK), 2 * items))
    kinds = sorted({request.constraints["kind"] for request in storyworld.requests(0, items)})
    plain = [plain_wish(kinds[i % len(kinds)]) for i in range(items)]
    name = Item("What is your name?", "name", lambda reply: NAME in reply)
    return {
        "a story first": [([], wish) for wish in judged],
        "a story after small talk": [([talk[i]], wish) for i, wish in enumerate(judged)],
        "a story after another story": [([told[i].prompt], wish) for i, wish in enumerate(judged)],
        "a story after two turns of small talk": [([talk[i], talk[i + 3]], wish) for i, wish in enumerate(judged)],
        "a plain wish first": [([], wish) for wish in plain],
        "a plain wish after small talk": [([talk[i]], wish) for i, wish in enumerate(plain)],
        "its name first": [([], name)],
        "its name after a story": [([wish.prompt], name) for wish in judged],
    }


def plain_wish(kind: str) -> Item:
    """A wish that names the hero alone: as short as a question of small talk."""
    request = storyworld.read_request(f"Tell me a story about {a_or_an(kind)}.")
    assert request is not None, kind
    return Item(request.text, kind, lambda reply: storyworld.check_request(request, reply))


def is_right(new_session: Callable[[], ChatSession], before: list[str], task: Item, seed: int) -> bool:
    """Whether the last answer of a conversation is right; the model writes the others too."""
    session = new_session()
    session.settings = replace(REQUESTS, seed=seed)
    for question in (*before, task.prompt):
        answer = "".join(session.ask(question))
    return task.is_right(answer)


def main() -> None:
    """Print a Markdown table, a row a situation, a column a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", nargs="+", required=True)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    set_threads(args.threads)
    speakers = [read_model(find_checkpoint(ckpt, say=print)) for ckpt in args.ckpt]
    print(f"story world {storyworld.VERSION}, {args.items} conversations each\n")
    print("| last turn | conversations | " + " | ".join(args.ckpt) + " |\n|---|---|" + "---|" * len(speakers))
    for name, conversations in situations(args.items).items():
        cells = []
        for speaker in speakers:
            right = sum(is_right(lambda s=speaker: ChatSession(s), *conversation, seed) for seed, conversation in enumerate(conversations))  # type: ignore[misc]
            low, high = wilson(right, len(conversations))
            cells.append(f"{right / len(conversations):.1%} ({low:.1%} to {high:.1%})")
        print(f"| {name} | {len(conversations)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
