"""Who is who: pronouns, possessives, names that stay, and who has a thing."""

from __future__ import annotations

import random

from positron_mini.evaluate.pairs.making import Kind, Person, Unit, cross, two
from positron_mini.evaluate.pairs.words import ADJECTIVES, ANIMALS, FOODS, PET_NAMES, PLACES, TOYS, boy_and_girl, persons

# --- pronouns ---------------------------------------------------------------------------------------------------------------------------

FAMILY = tuple(
    (Person(f"The {man}", "he", "him", "his", "boy"), Person(f"The {woman}", "she", "her", "her", "girl"))
    for man, woman in (
        ("boy", "girl"), ("king", "queen"), ("prince", "princess"), ("little boy", "little girl"), ("man", "woman"),
        ("old man", "old woman"), ("small boy", "small girl"), ("brother", "sister"),
    )
) + tuple(
    (Person(man, "he", "him", "his", "boy"), Person(woman, "she", "her", "her", "girl"))
    for man, woman in (("Dad", "Mom"), ("Grandpa", "Grandma"), ("Daddy", "Mommy"), ("Uncle Bob", "Aunt Jill"))
)  # fmt: skip
SUBJECT_FRAMES = (
    "{a} lost a {t} in the park. _ looked for it all day.",
    "{a} fell off the chair. _ began to cry.",
    "{a} saw a big {t} in the shop. _ wanted to have it.",
    "{a} went to the {p} in the morning. _ was very happy there.",
    "{a} made a {food} for a friend. _ hoped that it was good.",
    "{a} heard a loud noise in the dark. _ was scared.",
    "{a} opened the box with the {t}. _ could not believe it.",
    "{a} liked to play with the {t}. _ played every day.",
    "{a} ate a big {food}. _ was not hungry now.",
    "{a} ran and ran to the {p}. _ was out of breath.",
    "{a} put the {t} on the table. Then _ went outside.",
    "{a} was tired after the long day at the {p}, so _ went to bed.",
    "{a} smiled because _ liked the {t}.",
    "{a} found a {t} near the {p}, and _ took it home.",
    "{a} wanted to fix the {t}, but _ did not know how.",
    "{a} was so glad that _ began to dance at the {p}.",
    "When {a} came home with the {t}, _ was wet from the rain.",
    "One day, {a} sat in the garden and ate a {food}. Then _ saw a butterfly.",
)
OBJECT_FRAMES = (
    "{a} was sad about the {t}. A friend came and helped _ .",
    "{a} could not find the way to the {p}. A kind bird showed _ the way.",
    "{a} fell near the {p}, and the doctor looked at _ .",
    "{a} was lost at the {p}. The people looked for _ all night.",
    "{a} called the dog, and the dog ran to _ with the {t}.",
    "{a} was hungry, so they gave _ a {food}.",
    "{a} waited at the {p}, and a big dog sat next to _ .",
    "{a} wanted a {t}, but nobody gave _ one.",
)
SELF_FRAMES = (
    "{a} looked at _ in the mirror and saw the new {t}.",
    "{a} made a {food} and ate it all by _ .",
    "{a} was proud of _ and showed the {t} to the class.",
    "{a} played with the {t} alone and talked to _ .",
    "{a} fell and hurt _ near the {p}.",
    "{a} hid behind the {t} and laughed to _ .",
)


def _he_or_she(rng: random.Random) -> tuple[Person, Person]:
    return rng.choice(FAMILY) if rng.random() < 0.3 else boy_and_girl(rng)


def _gendered(rng: random.Random, frame: str, form: str) -> Unit:
    man, woman = _he_or_she(rng)
    slots = {"t": rng.choice(TOYS), "p": rng.choice(PLACES), "food": rng.choice(FOODS)}
    frame = frame.replace(" .", ".")
    if ". _" in frame and form == "he":
        form = "He"
    inside = not frame.startswith("{a}")
    first, second = (frame.format(a=_inside(who.name) if inside else who.name, **slots) for who in (man, woman))
    return cross(first, second, getattr(man, form), getattr(woman, form))


def _inside(name: str) -> str:
    """A name inside a sentence: "the king" for "The king"."""
    return f"the {name[4:]}" if name.startswith("The ") else name


def _subjects(rng: random.Random) -> Unit:
    return _gendered(rng, rng.choice(SUBJECT_FRAMES), "he")


def _objects(rng: random.Random) -> Unit:
    return _gendered(rng, rng.choice(OBJECT_FRAMES), "him")


def _selves(rng: random.Random) -> Unit:
    return _gendered(rng, rng.choice(SELF_FRAMES), "himself")


PRONOUN_GENDER: tuple[Kind, ...] = (_subjects, _objects, _subjects, _selves)

# --- possessives ------------------------------------------------------------------------------------------------------------------------

OWN_FRAMES = (
    "{a} put on _ {w} and went out.",
    "{a} took off _ {w} at the door.",
    "{a} washed _ {w} in the river.",
    "{a} lost _ {w} at the {p}.",
    "{a} forgot _ {w} at the {p}.",
    "{a} came home without _ {w}.",
    "{a} looked for _ {w} under the bed.",
    "{a} sat down and cleaned _ {w}.",
    "{a} ran home to get _ {w}.",
    "{a} went to the {p} with _ {w}.",
)
WORN = ("hat", "shoes", "coat", "boots", "socks", "scarf", "bag", "shirt", "gloves")
BODY_FRAMES = (
    "{a} closed _ eyes and went to sleep.", "{a} opened _ eyes and saw the {t}.", "{a} washed _ hands at the {p}.",
    "{a} clapped _ hands and laughed at the {t}.", "{a} shook _ head and said no to the {t}.", "{a} nodded _ head and took the {t}.",
    "{a} went to the {p} with _ mom and a {t}.", "{a} played at the {p} with _ friends.", "{a} asked _ dad for a {t}.",
    "{a} wanted to show _ mom the {t}.", "{a} said goodbye to _ friends at the {p}.", "{a} ate _ lunch at the {p}.",
    "{a} went back to _ room with the {t}.", "{a} loved _ grandma and gave her a {t}.", "{a} played with the {t} in _ room.",
)  # fmt: skip
SHARED_FRAMES = (
    "{a} closed _ eyes and thought of the {t}.", "{a} opened _ eyes and saw the {t}.", "{a} washed _ hands at the {p}.",
    "{a} clapped _ hands at the {p}.", "{a} put on _ {w} and went out.", "{a} went to the {p} with _ mom and a {t}.",
    "{a} rubbed _ eyes at the {p}.", "{a} took off _ {w} at the door.", "{a} raised _ hands and asked for the {t}.",
)  # fmt: skip
MINE = (
    "lost _ {w} at the {p}", "found _ {w} under the bed", "put _ {w} in the bag", "forgot _ {w} at the {p}", "broke _ {t} in the garden",
    "left _ {t} at the {p}", "hid _ {t} in the box", "dropped _ {w} in the mud", "took _ {t} to the {p}",
)  # fmt: skip
OWNER_FRAMES = (
    "{a} had a {t}. {b} had a {u}. Everyone liked _'s {last}.",
    "{a} found a {t}, and {b} found a {u}. Mom looked at _'s {last}.",
    "{a} got a {t} and {b} got a {u}. Then the dog took _'s {last}.",
    "{a} made a {t}. {b} made a {u}. The teacher liked _'s {last} best.",
    "{a} played with a {t} and {b} played with a {u}. The rain fell on _'s {last}.",
)


def _slots(rng: random.Random) -> dict[str, str]:
    toy, other = two(rng, TOYS)
    return {"t": toy, "u": other, "w": rng.choice(WORN), "p": rng.choice(PLACES)}


def _his(rng: random.Random) -> Unit:
    (man, woman), frame, slots = boy_and_girl(rng), rng.choice(OWN_FRAMES + BODY_FRAMES), _slots(rng)
    return cross(frame.format(a=man, **slots), frame.format(a=woman, **slots), man.his, woman.his)


def _their(rng: random.Random) -> Unit:
    (a, b), frame, slots = persons(rng), rng.choice(SHARED_FRAMES), _slots(rng)
    return cross(frame.format(a=b, **slots), frame.format(a=f"{a} and {b}", **slots), b.his, "their")


def _my(rng: random.Random) -> Unit:
    (a, _), deed, slots = persons(rng), rng.choice(MINE), _slots(rng)
    end = rng.choice(("said", "cried", "shouted"))
    first, second = (f'"{who} {deed.format(**slots)}," {end} {a}.' for who in ("I", "You"))
    return cross(first, second, "my", "your")


def _owners(rng: random.Random) -> Unit:
    (a, b), frame, slots = persons(rng), rng.choice(OWNER_FRAMES), _slots(rng)
    first, second = (frame.format(a=a, b=b, last=thing, **slots) for thing in (slots["t"], slots["u"]))
    return cross(first, second, a.name, b.name)


POSSESSIVES: tuple[Kind, ...] = (_his, _their, _my, _owners)

# --- names ------------------------------------------------------------------------------------------------------------------------------

NAMED = (
    "There was a {adj} {k} named {x}.",
    "Once upon a time, there was a {k} named {x}.",
    "{a} had a little {k} called {x}.",
    "In the forest lived a {k} named {x}.",
    "{a} found a {adj} {k} and named it {x}.",
    "The name of the {adj} {k} was {x}.",
    "{a} met a {k} whose name was {x}.",
)
NAMED_AGAIN = (
    "One day, _ went to the {p}.", "Every day, _ played near the {p}.", "The {k} was {adj}, and _ could run fast.",
    "Everyone loved _ very much.", "One night, _ could not sleep.", "It was a sunny day, and _ was happy.",
    "The other animals liked _ too.", "In the morning, _ wanted to eat.", "When it rained, _ stayed at home.", "Soon, _ saw a {t}.",
)  # fmt: skip
TWO_NAMED = (
    "A {k} named {x} met a {l} named {y}. The {last} was called _.",
    "There was a {k} called {x} and a {l} called {y}. The name of the {last} was _.",
    "{a} had a {k} named {x} and a {l} named {y}. One day, {a} looked for the {last}. {a} called, \"Where are you, _?\"",
    "{x} was a {k}. {y} was a {l}. They were friends. The {last} was named _.",
)  # fmt: skip
KIND_AGAIN = (
    "There was a {k} named {x}. {x} was a very {adj} _.",
    "{a} had a {k} called {x}. {x} was the best _ of all.",
    "Once upon a time, there was a {k} named {x}. Everyone liked the {adj} _.",
    "{x} was a {k}. One day, {x} went to the {p}. The people looked at the _ and smiled.",
    "In the forest lived a {k} named {x}. One night, the _ heard a noise.",
    "{a} met a {k} named {x}. {a} gave some food to the _ and went home.",
)
KINDS = tuple(noun.one for noun in ANIMALS if noun.one not in ("puppy", "kitten", "bunny"))  # a puppy is a dog too


def _name_slots(rng: random.Random) -> dict[str, str]:
    kind, other = two(rng, KINDS)
    return {
        "a": str(persons(rng)[0]), "k": kind, "l": other, "adj": rng.choice(ADJECTIVES), "p": rng.choice(PLACES), "t": rng.choice(TOYS),
    }  # fmt: skip


def _same_name(rng: random.Random) -> Unit:
    (x, y), slots = two(rng, PET_NAMES), _name_slots(rng)
    frame = f"{rng.choice(NAMED)} {rng.choice(NAMED_AGAIN)}"
    return cross(frame.format(x=x, **slots), frame.format(x=y, **slots), x, y)


def _which_name(rng: random.Random) -> Unit:
    (x, y), slots, frame = two(rng, PET_NAMES), _name_slots(rng), rng.choice(TWO_NAMED)
    return cross(frame.format(x=x, y=y, last=slots["k"], **slots), frame.format(x=x, y=y, last=slots["l"], **slots), x, y)


def _same_kind(rng: random.Random) -> Unit:
    (x, _), slots, frame = two(rng, PET_NAMES), _name_slots(rng), rng.choice(KIND_AGAIN)
    kind, other = slots["k"], slots["l"]
    return cross(frame.format(x=x, **slots), frame.format(x=x, **{**slots, "k": other}), kind, other)


NAMING: tuple[Kind, ...] = (_same_name, _which_name, _same_name, _same_kind)

# --- who has it -------------------------------------------------------------------------------------------------------------------------

# The answer is {b} or, after the bar, {a}. It is named last in half of them, first in the others: guessing the nearest name does not help.
HOLDER_FRAMES = (
    "{a} had a {t}. {a} gave the {t} to {b}. Now _ has the {t}.|b",
    "{b} took the {t} from {a}. Now _ has the {t}.|b",
    "{a} threw the {adj} {t} to {b}, and _ caught it.|b",
    "{a} gave the {adj} {t} to {b}. Now _ does not have a {t}.|a",
    '{a} gave {b} a {adj} {t}. "Thank you," said _.|b',
    '{b} got a {t} from {a}. "Thank you," said _.|b',
    "{a} made a {food} for {b}. The {food} was for _.|b",
    "{a} showed {b} a {adj} {t}. The {t} belonged to _.|a",
    "{a} found the {t} that {b} had lost. The {t} belonged to _.|b",
    "{a} lost a {t}. {b} helped to look for it. The lost {t} belonged to _.|a",
    "{a} gave a {food} to {b}. Then _ ate it.|b",
    "{b} got a {adj} {food} from {a}. Then _ ate it.|b",
    "{a} had a {t}. {b} took it away. Now _ had the {t}.|b",
    "{a} let {b} play with the {adj} {t}. It was still the {t} of _.|a",
    "{a} sold the {adj} {t} to {b}. Now the {t} belongs to _.|b",
    "{b} asked {a} for the {t}, and {a} gave it away. Now _ has the {t}.|b",
)


def _holder(rng: random.Random, frames: tuple[str, ...]) -> Unit:
    frame, _, answer = rng.choice(frames).partition("|")
    (a, b), slots = persons(rng), {"t": rng.choice(TOYS), "food": rng.choice(FOODS), "adj": rng.choice(ADJECTIVES)}
    first, second = frame.format(a=a, b=b, **slots), frame.format(a=b, b=a, **slots)
    return cross(first, second, *((b.name, a.name) if answer == "b" else (a.name, b.name)))


def _last_named(rng: random.Random) -> Unit:
    return _holder(rng, HOLDER_FRAMES[::2])


def _first_named(rng: random.Random) -> Unit:
    return _holder(rng, HOLDER_FRAMES[1::2])


TRACKING_WHO: tuple[Kind, ...] = (_last_named, _first_named)
