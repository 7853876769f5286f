"""Word order, agreement of subject and verb, and tense."""

from __future__ import annotations

import random
from typing import NamedTuple

from positron_mini.evaluate.pairs.making import Kind, Unit, cross, swap, two
from positron_mini.evaluate.pairs.words import ADJECTIVES, ANIMALS, CHILDREN, SIGHTS, THINGS, TRAITS, Noun, person, persons

# --- word order -------------------------------------------------------------------------------------------------------------------------

SUBJECTS = ("he is", "she is", "it is", "you are", "they are", "we are", "he was", "she was", "it was", "they were", "the dog is",
            "the cat was", "the bird is", "the baby is", "your friend is", "the frog was", "my brother is", "your sister was")  # fmt: skip
STATEMENTS = ("I know that _ {t}", "I can see that _ {t}", "I think _ very {t}", "I am glad that _ so {t}", "Mom said that _ {t}")
QUESTIONS = ("Why _ {t}", "Why _ so {t}", "Why _ very {t}", "But why _ so {t}", "But why _ {t}")
MODALS = ("we can", "you can", "they can", "I can", "he will", "she will", "we will", "they will", "you will", "he could", "she could")
DEEDS = ("go home", "find the ball", "fix the boat", "help the bird", "make a cake", "open the box", "climb the tree", "get the kite",
         "cross the river", "catch the fish", "play with the ball", "clean the room", "reach the top", "build a house")  # fmt: skip
# the words on both sides of a swap vary, so that no single neighbour decides many pairs
ORDERS = (
    "{a} {found} a <{adj}|{n}> {where}.",
    "{a} {found} <the|{n}> {where}.",
    '"I {found} your <{adj}|{n}> {where}," said {a}.',
    "{a} {sat} <{on}|the {n}> {ending}.",
    "{when} {a} <{found}|a {n}> {where}.",
    "{a} <{wanted}|to> {find} the {n}.",
    "{a} <{did}|not> {find} the {n}.",
    "{a} was <{very}|{t}> {then}.",
    "{a} and {b} <{were}|{t}> {then}.",
    "{a} {asked} {b} <to|{find}> the {n}.",
)
ORDER_WORDS: dict[str, tuple[str, ...]] = {
    "found": ("found", "saw", "liked", "dropped", "took", "put", "lost", "wanted", "kept", "hid", "washed"),
    "where": (
        "in the park",
        "on the table",
        "near the door",
        "by the river",
        "at home",
        "under the bed",
        "for Mom",
        "with a smile",
        "again",
    ),
    "sat": ("sat", "hid", "stood", "waited", "slept", "jumped", "played", "stayed", "walked"),
    "on": ("on", "under", "near", "behind", "by", "over"),
    "ending": ("and waited", "all day", "with a smile", "for hours", "to rest", "until night", "but fell", "when it rained"),
    "when": ("One day,", "Then", "Later,", "At home,", "Soon,"),
    "wanted": ("wanted", "liked", "had", "tried", "started", "loved", "hoped", "began", "came"),
    "find": ("find", "see", "open", "hold", "bring", "get", "buy", "draw", "carry", "touch", "fix", "wash"),
    "did": ("did", "could", "would", "will", "can", "should", "must"),
    "very": ("very", "so", "too", "really", "always", "never"),
    "were": ("were", "felt", "looked", "became", "stayed"),
    "then": ("that day", "in the morning", "all day", "at school", "today", "when it rained", "after lunch", "for a while"),
    "asked": ("asked", "told", "helped", "wanted"),
}


def _statement_or_question(rng: random.Random) -> Unit:
    subject, _, verb = rng.choice(SUBJECTS).rpartition(" ")
    who, trait = person(rng), rng.choice(TRAITS)
    first = f'"{rng.choice(STATEMENTS).format(t=trait)}," said {who}.'
    second = f'"{rng.choice(QUESTIONS).format(t=trait)}?" asked {who}.'
    return cross(first, second, f"{subject} {verb}", f"{verb} {subject}")


def _can_we(rng: random.Random) -> Unit:
    subject, verb = rng.choice(MODALS).split()
    who, deed = person(rng), rng.choice(DEEDS)
    first = f'"{rng.choice(("I know", "I think", "I hope", "Maybe"))} _ {deed}," said {who}.'
    second = f'"{rng.choice(("How", "When", "Why", "Where"))} _ {deed}?" asked {who}.'
    return cross(first, second, f"{subject} {verb}", f"{verb} {subject}")


def _ordered(rng: random.Random) -> Unit:
    first, second = two(rng, ORDERS)
    return swap(_with_words(first, rng)), swap(_with_words(second, rng))


def _with_words(template: str, rng: random.Random) -> str:
    (a, b), words = persons(rng), {slot: rng.choice(choices) for slot, choices in ORDER_WORDS.items()}
    return template.format(a=a, b=b, n=rng.choice(THINGS).one, adj=rng.choice(ADJECTIVES), t=rng.choice(TRAITS), **words)


WORD_ORDER: tuple[Kind, ...] = (_statement_or_question, _ordered, _can_we, _ordered, _ordered)

# --- agreement --------------------------------------------------------------------------------------------------------------------------


class Verb(NamedTuple):
    """A verb in the singular and the plural, and what may follow it."""

    one: str
    many: str
    rests: tuple[str, ...]


_STATES = ("very happy", "so hungry", "asleep in the sun", "afraid of the dark", "on the grass", "in the garden", "not at home",
           "ready to play", "looking for food", "playing in the mud", "too tired to run", "sitting by the fire")  # fmt: skip
PAST = Verb("was", "were", _STATES)
PRESENT = (
    Verb("is", "are", _STATES),
    Verb("is", "are", _STATES),
    Verb("has", "have", ("big ears", "soft fur", "a lot of food", "new toys", "no home", "long legs")),
    Verb("wants", "want", ("to play with us", "to go home", "to eat", "some water", "to come in")),
    Verb("likes", "like", ("to run", "to jump", "the sun", "to play in the snow", "warm milk")),
    Verb("loves", "love", ("to sing", "to sleep", "the rain", "to dance", "cake")),
    Verb("needs", "need", ("help", "some food", "a hug", "to rest", "a new home")),
    Verb("looks", "look", ("sad", "very happy", "hungry", "scared", "so funny")),
    Verb("lives", "live", ("in the forest", "near the river", "on a farm", "in a big house")),
    Verb("runs", "run", ("very fast", "in the park every day", "up the hill")),
    Verb("knows", "know", ("the way home", "a nice song", "a secret")),
    Verb("goes", "go", ("to the pond every day", "home at night", "to sleep early")),
    Verb("does", "do", ("not want to play", "not like the rain", "not see us", "not eat grass")),
    Verb("makes", "make", ("a lot of noise", "funny sounds")),
    Verb("sleeps", "sleep", ("all day", "under the bed", "in the big tree")),
    Verb("comes", "come", ("here every day", "from the farm", "to eat with us")),
    Verb("plays", "play", ("in the yard", "with a ball", "near the lake")),
)
THING_PAST = Verb(
    "was", "were", ("on the floor", "very old", "broken", "too small", "in the water", "covered with mud", "gone", "so pretty")
)
THING_PRESENT = (
    Verb("is", "are", ("on the table", "so shiny", "too big for me", "wet", "under the bed", "red and blue")),
    Verb("looks", "look", ("nice", "very old", "funny", "heavy")),
    Verb("belongs", "belong", ("to me", "to my mom", "in the big room")),
    Verb("needs", "need", ("some paint", "to be fixed", "to be clean")),
    Verb("has", "have", ("a hole in the side", "a nice color", "red dots")),
)
STARTS = ("The", "One day, the", "Soon, the", "Then the", "In the morning, the", "After lunch, the", "That night, the", "At last, the")
SAID_STARTS = ("The", "The", "Look, the", "I see that the", "Mom, the")
JOINED_STARTS = ("One day, ", "Soon, ", "Then ", "In the morning, ", "After lunch, ", "That night, ", "At home, ", "")
NOW_STARTS = ("", "I think ", "Mom says that ", "I know that ")
NEAR = ("near", "next to", "behind", "in front of", "by")
ON = ("on", "under", "near", "behind", "next to")


def _agreeing(rng: random.Random, noun: Noun, past: Verb, present: tuple[Verb, ...], after: str = "") -> Unit:
    """A unit on singular and plural verbs, in the past (narrated) or the present (spoken); `after` is put between noun and verb."""
    if rng.random() < 0.4:
        verb, frame = past, f"{rng.choice(STARTS)} {{subject}} _ {rng.choice(past.rests)}."
    else:
        verb = rng.choice(present)
        frame = f'"{rng.choice(SAID_STARTS)} {{subject}} _ {rng.choice(verb.rests)}," said {person(rng)}.'
    return cross(frame.format(subject=noun.one + after), frame.format(subject=noun.many + after), verb.one, verb.many)


def _animals(rng: random.Random) -> Unit:
    return _agreeing(rng, rng.choice(ANIMALS + CHILDREN), PAST, PRESENT)


def _things(rng: random.Random) -> Unit:
    return _agreeing(rng, rng.choice(THINGS), THING_PAST, THING_PRESENT)


def _joined(rng: random.Random) -> Unit:
    a, b = persons(rng)
    verb = PAST if rng.random() < 0.5 else rng.choice(PRESENT)
    start, rest = rng.choice(JOINED_STARTS if verb is PAST else NOW_STARTS), rng.choice(verb.rests)
    return cross(f"{start}{b} _ {rest}.", f"{start}{a} and {b} _ {rest}.", verb.one, verb.many)


def _pronouns(rng: random.Random) -> Unit:
    a, b = persons(rng)
    verb = PAST if rng.random() < 0.5 else rng.choice(PRESENT)
    place, rest = rng.choice(("home", "inside", "outside", "to the park", "upstairs")), rng.choice(verb.rests)
    went = "came" if verb is PAST else "comes"
    go = "came" if verb is PAST else "come"
    return cross(f"When {a} {went} {place}, {a.he} _ {rest}.", f"When {a} and {b} {go} {place}, they _ {rest}.", verb.one, verb.many)


AGREEMENT_NEAR: tuple[Kind, ...] = (_animals, _joined, _things, _pronouns)


def _beside(rng: random.Random) -> Unit:
    subject, other = rng.choice(ANIMALS + CHILDREN), rng.choice(rng.choice(SIGHTS))
    return _agreeing(rng, subject, PAST, PRESENT, f" {rng.choice(NEAR)} the {other}")


def _thing_beside(rng: random.Random) -> Unit:
    subject, sight = rng.choice(THINGS), rng.choice([noun for noun in SIGHTS if noun not in THINGS])
    return _agreeing(rng, subject, THING_PAST, THING_PRESENT, f" {rng.choice(ON)} the {rng.choice(sight)}")


def _with(rng: random.Random) -> Unit:
    subject, other = rng.choice(CHILDREN), rng.choice(rng.choice(ANIMALS + THINGS))
    return _agreeing(rng, subject, PAST, PRESENT, f" with the {other}")


def _who_saw(rng: random.Random) -> Unit:
    seen = rng.choice(("saw", "liked", "had", "found", "lost", "fed"))
    return _agreeing(rng, rng.choice(CHILDREN), PAST, PRESENT, f" who {seen} the {rng.choice(rng.choice(ANIMALS))}")


AGREEMENT_ATTRACTOR: tuple[Kind, ...] = (_beside, _thing_beside, _with, _who_saw)

# --- tense ------------------------------------------------------------------------------------------------------------------------------


class Deed(NamedTuple):
    """A verb in three forms, and what may follow it."""

    base: str
    past: str
    third: str
    rests: tuple[str, ...]


def _deeds(table: str) -> tuple[Deed, ...]:
    found = []
    for line in table.strip().splitlines():
        forms, rests = line.split(": ")
        base, past, third = forms.split()
        found.append(Deed(base, past, third, tuple(rests.split(", "))))
    return tuple(found)


TENSES = _deeds("""
go went goes: to the park, home, to the shop, back inside
run ran runs: to the door, back home, into the garden
eat ate eats: the cake, an apple, some bread, all the soup
find found finds: the ball, a shiny coin, a new friend
take took takes: the ball, the cup, a little nap
give gave gives: the ball to the boy, some food to the cat
make made makes: a cake, a big tower, a paper boat
see saw sees: a bird, a frog in the pond, the moon
sing sang sings: a song, with the birds
drink drank drinks: some milk, the cold water
jump jumped jumps: over the stick, into the pond
climb climbed climbs: the tree, up the hill
play played plays: with the ball, in the sand
look looked looks: at the moon, for the key
open opened opens: the box, the big door
catch caught catches: the ball, a little fish
throw threw throws: the ball, a stone into the pond
buy bought buys: some bread, a new hat
bring brought brings: the book, some food
draw drew draws: a picture, a big cat
swim swam swims: in the lake, to the boat
sleep slept sleeps: in the big bed, under the tree
sit sat sits: on the chair, on the soft grass
write wrote writes: a letter, a little song
hold held holds: the baby bird, the long rope
hide hid hides: under the bed, behind the tree
ride rode rides: the bike, the brown horse
tell told tells: a story, a funny joke
wash washed washes: the cup, the dirty car
help helped helps: the old man, the little bird
build built builds: a tower, a house of sand
walk walked walks: to the lake, in the forest
paint painted paints: the fence, a red flower
pick picked picks: a flower, some apples
share shared shares: the cookies, the toys
feed fed feeds: the ducks, the hungry cat
""")
THEN = ("Then", "Yesterday,", "One day,", "That night,", "After that,", "That morning,")
ASKING = ("Did", "Can", "Will", "Did")
TO = ("{a} and {b} wanted to", "{a} and {b} had to", "{a} and {b} did not", "{a} and {b} could", "{a} and {b} started to",
      "Mom let them", "{a} and {b} would never", "It was fun to", "Dad helped them", "They were ready to")  # fmt: skip


def _did(rng: random.Random) -> Unit:
    (a, b), deed = persons(rng), rng.choice(TENSES)
    subject = rng.choice((f"{a}", f"{a} and {b}", "they", "the girl", "the boy", "the children", "your friend", "we"))
    rest = rng.choice(deed.rests)
    return cross(f"{rng.choice(THEN)} {subject} _ {rest}.", f"{rng.choice(ASKING)} {subject} _ {rest}?", deed.past, deed.base)


def _wanted_to(rng: random.Random) -> Unit:
    (a, b), deed = persons(rng), rng.choice(TENSES)
    rest = rng.choice(deed.rests)
    first = f"{rng.choice(THEN)} {rng.choice((f'{a} and {b}', 'they', 'the two friends', 'the children'))} _ {rest}."
    return cross(first, f"{rng.choice(TO).format(a=a, b=b)} _ {rest}.", deed.past, deed.base)


def _and_then(rng: random.Random) -> Unit:
    a, (deed, other) = person(rng), two(rng, TENSES)
    rest, more = rng.choice(deed.rests), rng.choice(other.rests)
    if rng.random() < 0.5:
        frame = f"{{when}} {a} {{did}} {rest} and _ {more}."
    else:
        frame = f"{{when}} {a} {{did}} {rest}. Then {a.he} _ {more}."
    first = frame.format(when=rng.choice(("Yesterday,", "One day,", "That morning,")), did=deed.past)
    second = frame.format(when=rng.choice(("Every day,", "Every morning,", "Look,")), did=deed.third)
    return cross(first, second, other.past, other.third)


TENSE: tuple[Kind, ...] = (_did, _wanted_to, _and_then)
