"""The words of the minimal pairs: frequent both in stories for three-year-olds and in the story world."""

from __future__ import annotations

import random
from typing import NamedTuple

from positron_mini.evaluate.pairs.making import Person


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BOYS = tuple(Person(name, "he", "him", "his", "boy") for name in _words("Tim Tom Ben Max Sam Jack Leo Peter"))
GIRLS = tuple(Person(name, "she", "her", "her", "girl") for name in _words("Lily Mia Sue Anna Lucy Amy Jane Molly"))
PEOPLE = BOYS + GIRLS
PET_NAMES = _words("Spot Fluffy Daisy Bella Luna Coco Teddy Poppy Penny Bobo Pepper Buddy Fin")


class Noun(NamedTuple):
    """A noun in the singular and the plural."""

    one: str
    many: str


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple(Noun(one, many or f"{one}s") for one, _, many in (word.partition("/") for word in _words(text)))


ANIMALS = _nouns("dog cat bird frog duck cow pig horse bear rabbit fox/foxes mouse/mice puppy/puppies bunny/bunnies kitten lion monkey")
CHILDREN = _nouns("boy girl child/children kid baby/babies friend twin")
THINGS = _nouns("ball hat toy cup box/boxes key book kite boat doll car stick stone flower bag shoe spoon leaf/leaves balloon drum")
SIGHTS = _nouns("tree house flower rock bush/bushes box/boxes chair car gate tent boat ladder")  # things to see
TOYS = _words("ball hat kite doll car drum book boat bear truck bike train")
FOODS = _words("cake cookie apple sandwich banana pie carrot pear muffin")
SMALL = _words("ball hat doll book key coin shoe spoon stone flower kite cup")  # things that fit in a bag
HOLDERS = _words("box bag basket bucket car boat closet drawer tent pot kitchen garden")  # in the ...
PLACES = _words("park shop zoo beach farm lake school library river pond market playground")  # at the ...
ADJECTIVES = _words("big small red blue green yellow old new shiny soft little pretty")
TRAITS = _words("happy kind brave sad shy funny clever friendly hungry sleepy lonely busy")


def person(rng: random.Random) -> Person:
    """A random person."""
    return rng.choice(PEOPLE)


def persons(rng: random.Random) -> tuple[Person, Person]:
    """Two different people."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second


def boy_and_girl(rng: random.Random) -> tuple[Person, Person]:
    """A boy and a girl."""
    return rng.choice(BOYS), rng.choice(GIRLS)


def unlike_persons(rng: random.Random) -> tuple[Person, Person]:
    """A boy and a girl in random order: "he" and "she" then leave no doubt."""
    pair = boy_and_girl(rng)
    return pair if rng.random() < 0.5 else (pair[1], pair[0])
