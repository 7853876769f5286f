"""Dialogue: where quoted speech begins and ends, and polite phrases."""

from __future__ import annotations

import random

from positron_mini.evaluate.pairs.making import Kind, Unit, cross
from positron_mini.evaluate.pairs.words import FOODS, PLACES, TOYS, persons

# --- quotation --------------------------------------------------------------------------------------------------------------------------

SAYINGS = ("I can see the {n}", "I like your {n}", "Look at the {n}", "I want to play with the {n}", "This is my {n}", "Give me the {n}",
           "We lost the {n}", "Let us go and find the {n}", "You can have my {n}", "I like this {n}", "Here is your {n}")  # fmt: skip
BEFORE = ("When {b} saw the {n}", "When {b} came with the {n}", "After {b} took the {n}", "As {b} played with the {n}",
          "Because {b} broke the {n}", "When {b} dropped the {n}", "After {b} found the {n}", "While {b} looked for the {n}")  # fmt: skip
TOLD = (
    "liked the {n}",
    "wanted the {n}",
    "could see the {n}",
    "had lost the {n}",
    "was afraid of the {n}",
    "had a new {n}",
    "loved that {n}",
)
AFTER = ("Then {b} smiled.", "Then they went home.", "Then they played.", "{b} was happy.", "They both laughed.", "{b} looked at it.")
QUESTIONS = ("Where is the {n}", "Can I have the {n}", "Do you see the {n}", "Who has my {n}", "Why did you take my {n}",
             "Did you find your {n}", "What is in the {n}", "Can we play with the {n}", "How did you lose the {n}")  # fmt: skip
ANSWERS = ("Here is the {n}", "I have the {n}", "You see the {n}", "The dog has my {n}", "I did not take the {n}", "I found your {n}",
           "There is a mouse in the {n}", "We will play with the {n}", "You must look for the {n}")  # fmt: skip
OWNED = ("lost", "found", "liked", "needed", "had", "dropped", "broke", "cleaned", "forgot", "loved", "hid")


def _end_before_name(rng: random.Random) -> Unit:
    (a, b), n = persons(rng), rng.choice(TOYS)
    deed = rng.choice(("said", "cried", "shouted", "answered"))
    first = f'"{rng.choice(SAYINGS)}_ {a} {deed}.'.format(n=n)
    second = f"{rng.choice(BEFORE)}_ {a} {rng.choice(('smiled', 'was sad', 'said hello', 'was glad', 'ran away'))}.".format(n=n, b=b)
    return cross(first, second, ',"', ",")


def _end_of_speech(rng: random.Random) -> Unit:
    (a, b), n, after = persons(rng), rng.choice(TOYS), rng.choice(AFTER)
    first = f'{a} said, "{rng.choice(SAYINGS)}_ {after}'.format(n=n, b=b)
    second = f"{a} said that {a.he} {rng.choice(TOLD)}_ {after}".format(n=n, b=b)
    return cross(first, second, '."', ".")


def _question_mark(rng: random.Random) -> Unit:
    (a, b), n, after = persons(rng), rng.choice(TOYS), rng.choice(AFTER)
    first = f'{a} said, "{rng.choice(QUESTIONS)}_ {after}'.format(n=n, b=b)
    second = f'{a} said, "{rng.choice(ANSWERS)}_ {after}'.format(n=n, b=b)
    return cross(first, second, '?"', '."')


def _whose_words(rng: random.Random) -> Unit:
    (a, _), n, deed = persons(rng), rng.choice(TOYS), rng.choice(OWNED)
    end = rng.choice((f" at the {rng.choice(PLACES)}", " again", " that day", " too"))
    return cross(f'{a} said, "I {deed} _ {n}{end}."', f"{a} said that {a.he} {deed} _ {n}{end}.", "my", a.his)


QUOTATION: tuple[Kind, ...] = (_end_before_name, _end_of_speech, _question_mark, _whose_words)

# --- politeness -------------------------------------------------------------------------------------------------------------------------

# A polite phrase of two words, and when it is said.
SITUATIONS: dict[str, tuple[str, ...]] = {
    "Thank you": (
        "{b} gave {a} a {food} as a gift.", "{b} helped {a} find the lost {t}.", "{a} was cold, and {b} gave {a.him} a warm coat.",
        "{b} fixed the broken {t} for {a}.", "{b} made a nice {food} for {a}.", "{b} shared the {food} with {a}.",
        "{a} could not reach the {t}. {b} got it for {a.him}.", "{b} let {a} play with the new {t}.", "{b} said that {a} was very kind.",
    ),
    "I'm sorry": (
        "{a} broke the {t} of {b}, and {b} cried.", "{a} pushed {b}, and {b} fell down.", "{a} took the {t} from {b} without asking.",
        "{a} told a lie, and {b} was sad.", "{a} ate the {food} of {b}.", "{a} lost the {t} that belonged to {b}.",
        "{a} was mean to {b} at the {p}.", "{a} spilled milk on the {t} of {b}.", "{a} stepped on the foot of {b}.",
    ),
    "Good night": (
        "It was time to sleep. {b} turned off the light.", "{a} was in bed, and {b} came to give {a.him} a kiss.",
        "{b} read {a} a story about a {t}. Then it was time for bed.", "The moon was high, and {a} and {b} were very sleepy.",
        "{a} went to bed with the {t}. {b} closed the door.", "It was dark and late. {a} hugged {b} and went to bed.",
    ),
    "Good morning": (
        "The sun came up. {a} woke up and saw {b}.", "{a} got out of bed. {b} was in the kitchen with a {food}.",
        "{a} woke up early and met {b} at the {p}.", "It was a new day, and {b} came to wake {a} up.",
        "After a long sleep, {a} opened {a.his} eyes and saw {b}.", "{b} made breakfast. {a} woke up and sat down to eat.",
    ),
    "You're welcome": (
        '"Thank you for the {food}," said {b}.', '"Thank you for your help, {a}," said {b}.', '{a} gave {b} a {t}. {b} said, "Thank you!"',
        '{a} helped {b} find the {t}. "Thank you so much," said {b}.', '"Thanks for the {t}, {a}," said {b}.',
        '{a} fixed the {t}. {b} hugged {a.him} and said thank you.',
    ),
    "Happy birthday": (
        "It was the birthday of {b}. {a} gave {b.him} a {t}.", "{b} was four years old today. {a} came with a big cake.",
        "{a} came to the birthday party with a {t} for {b}.", "There was a cake for the birthday of {b}. {a} lit the candles.",
        "{a} had a gift for {b}, because it was {b.his} birthday.", "It was a big day. {b} was five years old! {a} gave {b.him} a {food}.",
    ),
}  # fmt: skip
# no two phrases that fit the same situation: "you're welcome" and "thank you" both follow a gift
UNLIKE = (
    ("Thank you", "I'm sorry"), ("Thank you", "Good night"), ("I'm sorry", "Good night"), ("I'm sorry", "Good morning"),
    ("I'm sorry", "You're welcome"), ("I'm sorry", "Happy birthday"), ("Good night", "Good morning"), ("Good night", "You're welcome"),
    ("Good night", "Happy birthday"), ("You're welcome", "Happy birthday"), ("Thank you", "Happy birthday"),
    ("Good morning", "You're welcome"), ("Thank you", "I'm sorry"),
)  # fmt: skip
HELLO = (
    "{a} met {b} at the {p}.", "{b} came to the door. {a} opened it.", "{a} saw {b} for the first time at the {p}.",
    "A new girl came to the {p} with a {t}.", "{a} saw a friend at the {p} and waved.", "{a} and {b} met on the way to the {p}.",
)  # fmt: skip
GOODBYE = (
    "It was late, and {a} had to go home from the {p}.", "{b} had to leave. {a} was sad.", "It was time to go home. {a} waved to {b}.",
    "{a} and {b} played with the {t} all day. Then {b} went home.", "The party at the {p} was over. {a} took the {t} and left.",
    "The day at the {p} was over, and {b} went away.",
)  # fmt: skip
WISHES = ("Give me the {food}", "Give me your {t}", "Get me the {t}", "Show me the {food}", "Let me have the {t}", "Let me see your {t}",
          "Help me with the {t}", "Let me eat the {food}")  # fmt: skip
POLITE, RUDE = ("polite", "kind", "nice", "friendly"), ("rude", "mean", "angry", "bossy")


def _formula(rng: random.Random) -> Unit:
    one, other = rng.choice(UNLIKE)
    (a, b), slots = persons(rng), {"t": rng.choice(TOYS), "food": rng.choice(FOODS), "p": rng.choice(PLACES)}
    end = rng.choice((f'"_," said {a}.', f'"_, {b}," said {a}.', f'"_, {b}!" said {a}.', f'{a} said, "_."', f'{a} said, "_!"'))
    first, second = (f"{rng.choice(SITUATIONS[said])} {end}".format(a=a, b=b, **slots) for said in (one, other))
    return cross(first, second, one, other)


def _greeting(rng: random.Random) -> Unit:
    (a, b), slots = persons(rng), {"t": rng.choice(TOYS), "p": rng.choice(PLACES)}
    end = rng.choice((f'"_," said {a}.', f'"_, {b}," said {a}.', f'"_, {b}!" said {a}.', f'{a} said, "_!"'))
    first, second = (f"{rng.choice(frames)} {end}".format(a=a, b=b, **slots) for frames in (HELLO, GOODBYE))
    return cross(first, second, "Hello", "Goodbye")


def _please(rng: random.Random) -> Unit:
    (a, b), slots = persons(rng), {"t": rng.choice(TOYS), "food": rng.choice(FOODS)}
    wish = rng.choice(WISHES).format(**slots)
    first, second = (f'{a} was very {rng.choice(traits)} to {b}. "{wish}, _," said {a}.' for traits in (POLITE, RUDE))
    return cross(first, second, "please", "now")


POLITENESS: tuple[Kind, ...] = (_formula, _greeting, _formula, _formula, _please)
