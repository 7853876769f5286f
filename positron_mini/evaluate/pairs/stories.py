"""Beginnings and endings of stories."""

from __future__ import annotations

import random

from positron_mini.evaluate.pairs.making import Kind, Unit, cross, swap, two
from positron_mini.evaluate.pairs.words import ADJECTIVES, ANIMALS, HOLDERS, PLACES, SIGHTS, TOYS, person, unlike_persons

# --- the beginning ----------------------------------------------------------------------------------------------------------------------

# First sentences and later sentences, by their first word. For any two words, each opens the right text once and the wrong one once.
FIRST: dict[str, tuple[str, ...]] = {
    "Once": (
        "Once upon a time, there was a little {child} named {a}.", "Once upon a time, there lived a {k} and a {child} named {a}.",
        "Once there was a {child} whose name was {a}.", "Once upon a time, in a small town, there was a {child} called {a}.",
    ),
    "One": (
        "One day, a {child} named {a} went to the {p}.", "One sunny morning, a little {child} named {a} woke up.",
        "One day, there was a {child} called {a} who had a {t}.", "One time, there was a {child} named {a} at the {p}.",
    ),
    "There": (
        "There once was a {child} named {a}.", "There was a {child} named {a} who loved to play.",
        "There was once a little {child} called {a} who had a {k}.",
    ),
    "In": (
        "In a small house, there lived a {child} named {a}.", "In a big town, there was a {child} called {a}.",
        "In the forest, there lived a little {child} named {a}.",
    ),
    "A": ("A little {child} named {a} lived near the {p}.", "A {child} named {a} had a {k}.", "A happy {child} called {a} liked to sing."),
    "{a}": (
        "{a} was a little {child} who lived near the {p}.", "{a} was a {child} who loved to play with a {t}.",
        "{a} was a very happy {child} who had a {k}.",
    ),
}  # fmt: skip
LATER: dict[str, tuple[str, ...]] = {
    "Once": ("Once, {a} lost the {t} and was sad.", "Once {a} was home, {a.he} told Mom about the {k}.",
             "Once, the {k} ran away from {a}."),
    "One": ("One day, {a} lost {a.his} {t}.", "One of the friends of {a} gave {a.him} a {t}.", "One day, {a} took the {k} to the {p}."),
    "There": ("There was a {k} in {a.his} garden.", "There, {a} saw a {k} and smiled.",
              "There was nothing {a.he} loved more than {a.his} {t}."),
    "In": ("In the garden, {a} found a {t}.", "In the end, {a} found {a.his} {t}.", "In {a.his} room, {a} had a {t} and a {k}."),
    "A": ("A {k} came and sat next to {a}.", "A kind {k} helped {a.him} find the way.", "A big {k} saw {a} and came closer."),
    "{a}": ("{a} took {a.his} {t} and went out.", "{a} said thank you to the {k}.", "{a} looked for {a.his} {t} everywhere."),
}  # fmt: skip
OPENED = (
    "Once upon a time, there was a little {child} named {a}.", "Once upon a time, a {child} named {a} lived near the {p}.",
    "There once was a {child} named {a} who loved {ks}.", "In a small house near the {p}, there lived a {child} named {a}.",
    "{a} was a little {child} who liked to play outside.", "There was a little {child} who was called {a}.",
    "Once there was a {child} named {a} who had a {k}.", "There was a {adj} house, and in it lived a {child} named {a}.",
)  # fmt: skip
SOLVED = (
    "{a} said sorry, and {b} gave {a.him} a hug.", "{a} found {a.his} {t} at last, and everyone was glad.",
    "In the end, {a} and {b} fixed the {t} together.", "{b} thanked {a} for all the help with the {t}.",
    "The little {k} was safe again, and {a} was proud.", "At last, {a} came home from the {p}, and Mom hugged {a.him}.",
    "{b} gave the {t} back to {a}, and they both smiled.", "Then {a} shared the {t} with {b}, and they laughed.",
)  # fmt: skip
# By number of words, so that only sentences of equal length are compared.
NEXT: dict[int, tuple[str, ...]] = {
    6: ("{He} had a {k} named Spot.", "{He} liked to play with toys.", "{He} lived in a small house.", "{He} loved to sing and dance.",
        "{He} had a big {adj} {t}.", "{He} wanted to find a friend."),
    7: ("{He} loved to play in the garden.", "{He} liked to look at the stars.", "One day, {he} went to the {p}.",
        "One day, {he} found a {adj} {t}.", "Every day, {he} played with {his} {t}.", "{He} lived with {his} mom and dad."),
    8: ("One day, {he} saw a {k} and stopped.", "One morning, {he} woke up and looked outside.", "One day, {his} mom gave {him} a {t}.",
        "{He} loved to play with {his} {adj} {t}.", "{He} lived in a house with {his} {k}."),
}  # fmt: skip
CLOSING: dict[int, tuple[str, ...]] = {
    6: ("And they lived happily ever after.", "From then on, they were friends.", "They were friends from then on.",
        "They all went home very happy.", "They were the best of friends.", "And everyone was happy once again."),
    7: ("From that day on, they were friends.", "They became best friends and played together.", "They all smiled and went home happy.",
        "And they all lived happily ever after.", "They were happy and hugged each other.", "And they were friends from then on."),
    8: ("They went home and had a nice dinner.", "They were happy and played together every day.",
        "From then on, they were always good friends.", "And from that day on, they always shared.",
        "And they were the best of friends again."),
}  # fmt: skip


def _slots(rng: random.Random) -> dict[str, str]:
    animal = rng.choice(ANIMALS[:14])
    return {
        "k": animal.one, "ks": animal.many, "t": rng.choice(TOYS), "p": rng.choice(PLACES), "adj": rng.choice(ADJECTIVES),
        "c": rng.choice(HOLDERS), "tree": rng.choice(SIGHTS).one,
    }  # fmt: skip


def _in_order(rng: random.Random) -> Unit:
    """A first sentence before a later one, with beginnings x and y, and with beginnings y and x."""
    (x, y), a, slots = two(rng, list(FIRST)), person(rng), _slots(rng)
    units = []
    for first, later in ((x, y), (y, x)):
        one, other = (rng.choice(table[key]).format(a=a, child=a.child, **slots) for table, key in ((FIRST, first), (LATER, later)))
        units.append(swap(f"<{one}|{other}>"))
    return units[0], units[1]


def _follows(rng: random.Random, tables: tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]], frames: tuple[str, ...]) -> Unit:
    """A unit of two sentences of equal length: one fits after a sentence of `frames`, the other after trouble that is over."""
    (a, b), slots, words = unlike_persons(rng), _slots(rng), rng.choice((6, 7, 8))
    forms = {"He": a.He, "he": a.he, "his": a.his, "him": a.him}
    one, other = (rng.choice(table[words]).format(**forms, **slots) for table in tables)
    first, second = (f"{rng.choice(before)} _".format(a=a, b=b, child=a.child, **slots) for before in (frames, SOLVED))
    return cross(first, second, one, other)


def _after_the_opening(rng: random.Random) -> Unit:
    return _follows(rng, (NEXT, CLOSING), OPENED)


OPENING: tuple[Kind, ...] = (_in_order, _after_the_opening)

# --- the end ----------------------------------------------------------------------------------------------------------------------------

TROUBLE = (
    "{a} lost {a.his} {t} at the {p}.", "One day, {a} heard a loud noise near the {p}.", "{a} saw a little {k} that could not move.",
    "{a} and {b} both wanted the {t}, and they began to fight.", "{a} could not find the way home from the {p}.",
    "{b} fell into the deep water.", "The {t} of {a} was stuck high in a tree.", "A big {k} took the {t} and ran away.",
)  # fmt: skip
TRYING: dict[int, tuple[str, ...]] = {
    6: ("{He} asked {his} mom for help.", "{He} wanted to help right away.", "{He} had a very good idea.", "So {he} called out for help.",
        "{He} was sad and sat down."),
    7: ("{He} did not know what to do.", "{He} was sad and started to cry.", "So {he} went to look for help.",
        "{He} thought and thought for a while.", "{He} ran home and called {his} mom."),
    8: ("{He} ran home and told {his} mom everything.", "But {he} did not want to give up.", "Then {he} had an idea and ran outside.",
        "{He} tried and tried, but nothing would help."),
}  # fmt: skip
# Trouble, then an attempt and its result: both sentences begin with the same word, so that only their order differs.
TALES = (
    ("{a} and {b} could not find the {t}.", "They looked in the {c} and in the garden.", "They found it at last and were happy."),
    ("{a} and {b} were lost near the {p}.", "They walked and walked for a long time.", "They saw their house and ran home."),
    ("{a} and {b} both wanted the {t}.", "They pulled at it and shouted.", "They said sorry and became friends again."),
    ("The {k} was stuck in the {tree}.", "{a} tried to pull it out for a long time.", "{a} got it out and was very proud."),
    ("{a} lost {a.his} {t}.", "{a.He} looked for it in the {c}.", "{a.He} was glad to have it back."),
    ("{a} wanted to bake a cake for {b}.", "{a.He} mixed the milk and the eggs.", "{a.He} gave the cake to {b}, who loved it."),
    ("{a} had a bad dream about a {k}.", "{a.He} woke up and called for Mom.", "{a.He} went back to sleep with a smile."),
    ("{a} broke the {t} of {b}.", "{a.He} did not want to tell anyone.", "{a.He} told the truth and felt better."),
    ("It was a hot day, and {a} wanted to swim.", "{a.He} walked to the water with {b}.", "{a.He} came home, wet and happy."),
    ("{a} planted a seed near the {tree}.", "{a.He} gave it water every day.", "{a.He} smiled when the big flower opened."),
    ("A little {k} was hungry.", "It asked {a} for some food.", "It ate all the food and slept well."),
    ("{a} and {b} found a small {k}.", "They gave it milk and a warm bed.", "They were happy when it was strong again."),
    ("{a} wanted to build a {tree}.", "{a.He} got some wood and worked all day.", "{a.He} showed it to {b} when it was done."),
    ("{a} was afraid of the {k}.", "{a.He} hid behind the {tree}.", "{a.He} was never afraid of it again."),
)  # fmt: skip
# An outcome, good or bad, and the last sentence.
TURNS = (
    ("{a} lost the {t}. {a.He} looked for it and", "found it under the bed", "never found it again", "{a.He} went to bed _ that night."),
    ("{a} ran in the race at the {p}. {a.He}", "won the race", "lost the race and fell", "{a.He} went home very _."),
    ("{a} wanted to have a {t}. In the end, {a.he}", "got a new one", "did not get one", "{a.He} was _."),
    ("{a} and {b} had a fight about the {t}. After that, they", "became friends again", "never played again", "They were very _."),
    ("The {k} of {a} was sick. After some days, it", "was well again", "died in the night", "{a} was so _."),
    ("{a} wanted to go to the {p}. Mom said", "yes, and they went there", "no, and they stayed home", "{a} was _ all day."),
    ("{a} made a {adj} {t} for {b}. {b}", "loved it and said thank you", "did not like it at all", "{a} felt very _."),
    ("{a} waited for {b} at the {p}. In the end, {b}", "came, and they played", "did not come", "{a} went home and was _."),
)


def _after_the_trouble(rng: random.Random) -> Unit:
    return _follows(rng, (TRYING, CLOSING), TROUBLE)


def _last_two(rng: random.Random) -> Unit:
    first, second = two(rng, TALES)
    pairs = []
    for trouble, trying, end in (first, second):
        (a, b), slots = unlike_persons(rng), _slots(rng)
        pairs.append(swap(f"{trouble} <{trying}|{end}>".format(a=a, b=b, **slots)))
    return pairs[0], pairs[1]


def _good_or_bad(rng: random.Random) -> Unit:
    (a, b), slots, (before, well, badly, last) = unlike_persons(rng), _slots(rng), rng.choice(TURNS)
    first, second = (f"{before} {turn}. {last}".format(a=a, b=b, **slots) for turn in (well, badly))
    return cross(first, second, "happy", "sad")


ENDING: tuple[Kind, ...] = (_after_the_trouble, _last_two, _good_or_bad)
