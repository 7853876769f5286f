"""Events and their consequences: the place of a thing, cause and effect, feelings."""

from __future__ import annotations

import random

from positron_mini.evaluate.pairs.making import Kind, Unit, cross, two
from positron_mini.evaluate.pairs.words import HOLDERS, PLACES, SMALL, TOYS, person, unlike_persons

# --- where it is ------------------------------------------------------------------------------------------------------------------------

# The answer is the place {d} or, after the bar, {c}; {c} is named before {d}.
MOVED_FRAMES = (
    "The {t} was in the {c}. {a} took it out and put it in the {d}. Now the {t} is in the _.|d",
    "{a} hid the {t} in the {c}. {b} looked in the {d}, but it was not there. The {t} was still in the _.|c",
    "{a} looked for the {t} in the {c}, but it was not there. Then {a.he} found it in the {d}. The {t} was in the _.|d",
    "{a} took the {t} out of the {c} and put it in the {d}. Before that, the {t} was in the _.|c",
    "First, the {t} was in the {c}. Then {a} put it in the {d}. At the end, the {t} was in the _.|d",
    "{a} had a {t} in the {c} and nothing in the {d}. The {t} was in the _.|c",
    "The {c} was empty, but there was a {t} in the {d}. {a} got the {t} from the _.|d",
    "There was a {t} in the {c}, but the {d} was empty. {a} got the {t} from the _.|c",
)
WALK_FRAMES = (
    "{a} was at the {c}. Then {a.he} went to the {d}. Now {a} is at the _.|d",
    "{a} wanted to go to the {c}. {b} wanted to go to the {d}. {a} went to the _.|c",
    "{a} did not go to the {c}. {a.He} went to the {d}. {a} played at the _.|d",
    "{a} stayed at the {c}. {b} went to the {d}. {a} was still at the _.|c",
    "{a} ran from the {c} to the {d}. Now {a} was at the _.|d",
    "{a} came home from the {c}. {b} came home from the {d}. {a} had been at the _.|c",
)
TWO_THINGS = (
    "{a} put the {t} in the {c} and the {u} in the {d}. The {last} was in the _.",
    "The {t} was in the {c}. The {u} was in the {d}. {a} found the {last} in the _.",
    "{a} hid the {t} in the {c}, and {b} hid the {u} in the {d}. Mom found the {last} in the _.",
    "There was a {t} in the {c} and a {u} in the {d}. {a} wanted the {last}, so {a.he} looked in the _.",
    "{a} saw a {t} in the {c} and a {u} in the {d}. Later, the {last} was still in the _.",
)


def _somewhere(rng: random.Random, frames: tuple[str, ...], places: tuple[str, ...]) -> Unit:
    frame, _, answer = rng.choice(frames).partition("|")
    (a, b), (c, d), t = unlike_persons(rng), two(rng, places), rng.choice(SMALL)
    first, second = frame.format(a=a, b=b, c=c, d=d, t=t), frame.format(a=a, b=b, c=d, d=c, t=t)
    return cross(first, second, *((d, c) if answer == "d" else (c, d)))


def _moved(rng: random.Random) -> Unit:
    return _somewhere(rng, MOVED_FRAMES[::2], HOLDERS)


def _not_moved(rng: random.Random) -> Unit:
    return _somewhere(rng, MOVED_FRAMES[1::2], HOLDERS)


def _walked(rng: random.Random) -> Unit:
    return _somewhere(rng, WALK_FRAMES[::2], PLACES)


def _stayed(rng: random.Random) -> Unit:
    return _somewhere(rng, WALK_FRAMES[1::2], PLACES)


def _which_thing(rng: random.Random) -> Unit:
    (a, b), (c, d), (t, u), frame = unlike_persons(rng), two(rng, HOLDERS), two(rng, SMALL), rng.choice(TWO_THINGS)
    first, second = (frame.format(a=a, b=b, c=c, d=d, t=t, u=u, last=last) for last in (t, u))
    return cross(first, second, c, d)


TRACKING_WHERE: tuple[Kind, ...] = (_moved, _not_moved, _which_thing, _walked, _stayed)

# --- cause and effect -------------------------------------------------------------------------------------------------------------------

# Within a frame, every cause has a different effect.
CAUSES: dict[str, dict[str, str]] = {
    "{a} {cause}. {a.He} wanted to _.": {
        "was very hungry": "eat", "was very tired": "sleep", "was so thirsty": "drink", "had dirty hands": "wash",
        "heard happy music": "dance", "had a new book": "read", "saw a big, angry bear": "hide", "had a new bike": "ride",
        "got paper and crayons": "draw",
    },
    "{a} {cause}. Soon, it _.": {
        "dropped the glass on the hard floor": "broke", "left the ice in the hot sun": "melted",
        "put the seed in the ground and gave it water": "grew", "threw the heavy stone into the lake": "sank",
        "kicked the ball down the hill": "rolled", "put the wood on the fire": "burned", "opened the cage of the bird": "flew",
    },
    "{a} {cause} because it was _.": {
        "took the umbrella": "raining", "turned on the light": "dark", "wanted some ice cream": "hot", "laughed at the joke": "funny",
        "could not lift the box": "heavy", "washed the shirt": "dirty", "could not buy the toy": "expensive", "fixed the chair": "broken",
        "filled the cup again": "empty", "did not like the noise": "loud",
    },
    "{a} {cause} because {a.he} was _.": {
        "ate a big sandwich": "hungry", "drank all the water": "thirsty", "went to sleep early": "tired",
        "washed with a lot of soap": "dirty", "hid under the bed": "scared", "danced and sang": "happy", "put on a coat and a hat": "cold",
    },
    "{a} {cause}, so {a.he} went to the _.": {
        "was sick": "doctor", "wanted to swim": "lake", "needed some bread and milk": "shop", "wanted to learn to read": "school",
        "wanted to see the lions": "zoo", "wanted to see the cows": "farm", "wanted to go on the swings": "park",
        "wanted to cook some soup": "kitchen", "wanted to sleep": "bedroom",
    },
    "{a} {cause}, so {a.he} got a _.": {
        "wanted to dig a hole": "shovel", "wanted to eat the soup": "spoon", "wanted to draw a picture": "crayon",
        "was cold in bed": "blanket", "wanted to climb up to the roof": "ladder", "wanted to clean the floor": "broom",
        "wanted to open the lock": "key", "wanted to drink some milk": "cup", "wanted to catch a fish": "net",
    },
}  # fmt: skip
WHENS = ("One day, ", "")


def _effect(frame: str, effects: dict[str, str]) -> Kind:
    def kind(rng: random.Random) -> Unit:
        (one, other), a, when = two(rng, list(effects)), person(rng), rng.choice(WHENS)
        first, second = (when + frame.format(a=a, cause=cause) for cause in (one, other))
        return cross(first, second, effects[one], effects[other])

    return kind


CAUSE_EFFECT: tuple[Kind, ...] = tuple(_effect(frame, effects) for frame, effects in CAUSES.items())

# --- feelings ---------------------------------------------------------------------------------------------------------------------------

FELT: dict[str, tuple[str, ...]] = {
    "sad": (
        "{a} lost {a.his} best {t}.", "The friend of {a} moved far away.", "The ice cream of {a} fell on the ground.",
        "Nobody wanted to play with {a}.", "The little bird of {a} flew away and did not come back.", "{a} could not go to the party.",
        "The {t} of {a} was broken.", "It rained, and {a} could not go to the {p}.",
    ),
    "happy": (
        "{a} got a new {t} from {a.his} grandma.", "Mom made the best cake for {a}.", "{a} found the {t} that was lost.",
        "All the friends came to play with {a}.", "{a} went to the {p} with Dad and had fun.", "{a} got a big hug from Mom.",
        "{a} made a new friend at the {p}.", "{b} gave {a} a {t} as a gift.",
    ),
    "scared": (
        "{a} heard a loud noise in the dark.", "{a} saw a big snake in the grass.", "{a} was lost in the dark forest.",
        "A big dog ran after {a}.", "There was a storm, and {a} was alone.", "{a} saw a monster in a bad dream.",
        "{a} heard something move under the bed.", "A big bear came to the {p}, and {a} saw it.",
    ),
    "angry": (
        "{b} took the {t} from {a} and did not give it back.", "{b} pushed {a} into the mud.", "{b} broke the {t} of {a} and laughed.",
        "{b} was mean to {a} at the {p}.", "{b} ate all the cookies that {a} had made.", "{b} kicked the sand tower of {a}.",
    ),
    "proud": (
        "{a} won the race at the {p}.", "{a} learned to ride a bike.", "{a} built a tall tower without any help.",
        "{a} saved a little bird.", "{a} drew a picture, and everyone clapped.", "{a} read a whole book alone.",
        "{a} was the best in the class.", "{a} fixed the {t} all alone.",
    ),
    "tired": (
        "{a} worked in the garden all day.", "{a} walked a long way to the {p} and back.", "{a} did not sleep all night.",
        "{a} ran up and down the hill.", "It was late, and {a} was still awake.", "{a} carried the heavy {t} home.",
    ),
    "sorry": (
        "{a} broke the {t} of {b}.", "{a} pushed {b} at the {p}.", "{a} told a lie to Mom.", "{a} took the {t} without asking.",
        "{a} was mean to {b}, and {b} cried.", "{a} forgot the birthday of {b}.",
    ),
}  # fmt: skip
# no two feelings that can follow the same event, such as angry and sad
UNLIKE = (
    ("sad", "happy"), ("sad", "happy"), ("sad", "proud"), ("scared", "happy"), ("scared", "proud"), ("angry", "happy"), ("angry", "proud"),
    ("angry", "tired"), ("scared", "tired"), ("sorry", "happy"), ("sorry", "proud"), ("sorry", "tired"), ("sorry", "scared"),
)  # fmt: skip
FELT_FRAMES = ("{He} felt very _.", "{He} was so _.", "This made {him} feel _.", "{He} was very _ that day.", "Now {he} was _.")
HURT = ("{a} fell and hurt {a.his} knee.", "{a} lost the new {t}.", "{a} could not find Mom at the {p}.", "{b} took the {t} of {a}.",
        "The pet fish of {a} died.", "{a} dropped the {t}, and it broke.", "{a} cut {a.his} finger.")  # fmt: skip
FUN = ("{a} saw a funny clown with a {t}.", "{b} told {a} a funny joke.", "{a} saw a monkey on a {t}.", "The puppy licked the face of {a}.",
       "{b} made a silly face, and {a} saw it.", "{a} danced with the {t} at the {p}.", "{a} saw a dog with a funny hat.")  # fmt: skip
LAUGH_OR_CRY = (("laugh", "cry", "{He} began to _."), ("laugh", "cry", "It made {him} _."),
                ("laughed", "cried", "{He} _ and could not stop."), ("laughing", "crying", "{He} started _."),
                ("smile", "tear", "There was a _ on {his} face."))  # fmt: skip


def _slots(rng: random.Random) -> dict[str, str]:
    return {"t": rng.choice(TOYS), "p": rng.choice(PLACES)}


def _feeling(rng: random.Random) -> Unit:
    one, other = rng.choice(UNLIKE)
    (a, b), slots = unlike_persons(rng), _slots(rng)
    end = rng.choice(FELT_FRAMES).format(He=a.He, he=a.he, him=a.him)
    first, second = (f"{rng.choice(FELT[feeling])} {end}".format(a=a, b=b, **slots) for feeling in (one, other))
    return cross(first, second, one, other)


def _laugh_or_cry(rng: random.Random) -> Unit:
    laugh, cry, end = rng.choice(LAUGH_OR_CRY)
    (a, b), slots = unlike_persons(rng), _slots(rng)
    end = end.format(He=a.He, him=a.him, his=a.his)
    first, second = (f"{rng.choice(events)} {end}".format(a=a, b=b, **slots) for events in (FUN, HURT))
    return cross(first, second, laugh, cry)


FEELINGS: tuple[Kind, ...] = (_feeling, _feeling, _laugh_or_cry)
