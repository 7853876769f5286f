"""Story arcs: wish or trouble, attempts, a turn, and an ending with a feeling that has its reason.

Each arc is a function of the teller; what it decides shows in the very next sentences.
"""

from __future__ import annotations

from collections.abc import Callable

from positron_mini.storyworld.cast import elder, place, someone, spot, thing
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.teller import Teller

Arc = Callable[[Teller, str], None]


def opening(t: Teller) -> str:
    """Tell the first sentences; return the hero's name."""
    name, kind = someone(t)
    t.tell(("intro", "intro_home", "intro_likes")[t.pick(3)], A=name, A_kind=kind)
    if not t.state.facts.get("homed") and t.coin(0.15):
        t.tell("home", A=name)
    if not t.state.facts.get("liked") and t.coin(0.35):
        t.tell("likes", A=name)
    return name


def treasure(t: Teller, hero: str, mark: str) -> str:
    """Introduce an object that the hero owns and loves; return its noun."""
    roles = thing(t, mark)
    t.tell("own", A=hero, **roles)
    if t.coin(0.2):
        t.tell("care", A=hero, O=roles["O"])
    return roles["O"]


def set_out(t: Teller, hero: str, noun: str = "", *groups: str) -> None:
    """Let the hero go to a place, with the object if one is named, and look around."""
    t.paragraph()
    where = place(t, *groups)
    if noun:
        t.tell("go_with", A=hero, O=noun, P=where)
    else:
        t.tell("go", A=hero, P=where)
    look_around(t, hero, noun)


def look_around(t: Teller, hero: str, noun: str = "") -> None:
    """Tell up to two sentences about the scene and a game."""
    t.tell("view", A=hero)
    if noun and t.coin(0.25):
        t.tell("use_thing", A=hero, O=noun)
    elif t.coin(0.6):
        t.tell("play", A=hero)


def helper(t: Teller, hero: str) -> str:
    """Bring in a stranger, a friend or a grown-up who comes along; return the name."""
    course = t.pick(3)
    if course == 2:
        name = elder(t)
        t.tell("elder_comes", A=name, B=hero)
        return name
    name, kind = someone(t)
    t.tell(("meet", "friend_comes")[course], A=name, A_kind=kind, B=hero)
    return name


def console(t: Teller, hero: str, friend: str, tell_event: str, **roles: str) -> None:
    """Let the helper ask what is wrong, the hero tell, and the helper say a kind word."""
    if t.coin(0.15):
        t.tell("ask_wrong", A=friend, B=hero)
    t.tell(tell_event, A=hero, B=friend, **roles)
    if t.coin(0.2):
        t.tell("kind_word", A=friend, B=hero)


def thanks(t: Teller, hero: str, friend: str) -> None:
    """Let the hero thank the friend, who may answer."""
    t.tell("thank", A=hero, B=friend)
    if t.coin(0.1):
        t.tell("welcome", A=friend, B=hero)


def together(t: Teller, hero: str, friend: str) -> None:
    """Tell a game or a snack, or neither."""
    course = t.pick(3)
    if course == 0:
        t.tell("play_pair")
    elif course == 1:
        t.tell("share_snack", A=hero, B=friend)


def ending(t: Teller, hero: str, friend: str, noun: str = "") -> None:
    """Tell the way home, supper or bed, and a last sentence."""
    t.paragraph()
    if t.state.facts["scene"] == "home" or t.coin(0.4):
        homeward(t, hero, noun)
    if t.state.pair and all(t.state.here(name) for name in t.state.pair) and t.coin(0.3):
        t.tell("end_pair")
    else:
        t.tell("end", A=hero)


def homeward(t: Teller, hero: str, noun: str) -> None:
    """Tell the way home, if the hero is not there yet, supper and bed."""
    if t.state.facts["scene"] != "home":
        roles = {"O": noun} if noun and t.state.facts.get(f"holder {noun}") == hero else {}
        t.tell("go_home", A=hero, **roles)
    if t.coin(0.4):
        t.tell("supper", A=hero)
    if t.coin(0.3):
        t.tell("bed", A=hero)


def lost(t: Teller, hero: str) -> None:
    """Arc: the hero loses an object and finds it again with help."""
    noun = treasure(t, hero, "")
    set_out(t, hero, noun)
    t.tell("lose", A=hero, O=noun)
    if t.coin(0.35):
        t.tell("sad_lost", A=hero, O=noun)
    t.paragraph()
    friend = helper(t, hero)
    console(t, hero, friend, "tell_lost", O=noun)
    t.tell("offer_look", A=friend, B=hero, O=noun)
    t.paragraph()
    for _ in range(t.pick(2)):
        if t.coin(0.35):
            t.tell("search_pair", S=spot(t), O=noun)
        else:
            t.tell("search", A=(hero, friend)[t.pick(2)], S=spot(t), O=noun)
    finder = (hero, friend)[t.pick(2)]
    t.tell("find", A=finder, O=noun, S=spot(t))
    if t.coin(0.3):
        t.tell("shout_found", A=finder, O=noun)
    if finder == friend:
        t.tell("give_back", A=friend, B=hero, O=noun)
    if t.coin(0.35):
        t.tell("glad_found", A=hero, O=noun)
    if t.coin(0.5):
        thanks(t, hero, friend)
    together(t, hero, friend)
    ending(t, hero, friend, noun)


def broken(t: Teller, hero: str) -> None:
    """Arc: an object breaks; somebody who can mend it does, or both do."""
    noun = treasure(t, hero, "b")
    set_out(t, hero, noun)
    t.tell("break", A=hero, O=noun)
    if t.coin(0.4):
        t.tell("sad_broken", A=hero, O=noun)
    if t.coin(0.4):
        t.tell("try_mend", A=hero, O=noun)
    t.paragraph()
    friend = helper(t, hero)
    console(t, hero, friend, "tell_broken", O=noun)
    t.tell("offer_mend", A=friend, B=hero)
    t.paragraph()
    if t.coin(0.4):
        t.tell("mend_pair", O=noun, B=friend)
    else:
        t.tell("mend", A=friend, O=noun)
    t.tell("glad_mended", A=hero, O=noun)
    if t.coin(0.5):
        thanks(t, hero, friend)
    together(t, hero, friend)
    ending(t, hero, friend, noun)


def stuck(t: Teller, hero: str) -> None:
    """Arc: the wind puts an object into a tree; somebody tall or with a ladder gets it down."""
    noun = treasure(t, hero, "k")
    set_out(t, hero, noun, "nature", "water")
    t.tell("stick", A=hero, O=noun)
    if t.coin(0.3):
        t.tell("sad_stuck", A=hero, O=noun)
    for _ in range(t.pick(2)):
        t.tell("try_reach", A=hero, O=noun)
    t.paragraph()
    friend = helper(t, hero)
    console(t, hero, friend, "tell_stuck", O=noun)
    t.tell("offer_reach", A=friend, B=hero)
    t.paragraph()
    t.tell("reach", A=friend, O=noun)
    t.tell("give_back", A=friend, B=hero, O=noun)
    if t.coin(0.35):
        t.tell("feel_happy", A=hero)
    if t.coin(0.5):
        thanks(t, hero, friend)
    together(t, hero, friend)
    ending(t, hero, friend, noun)


def wish(t: Teller, hero: str) -> None:
    """Arc: the hero wants to buy an object, has no money, works for it and buys it."""
    set_out(t, hero, "", "town")
    roles = thing(t)
    noun = roles["O"]
    t.tell("see_wish", A=hero, **roles)
    t.tell("no_money", A=hero, O=noun)
    t.paragraph()
    boss = elder(t)
    t.tell("elder_comes", A=boss, B=hero)
    console(t, hero, boss, "tell_wish", O=noun)
    chore = t.choose(lexicon().chores)
    t.tell("offer_work", A=boss, B=hero, K=chore)
    t.paragraph()
    t.tell("work", A=hero, K=chore)
    t.tell("pay", A=boss, B=hero)
    t.tell("buy", A=hero, O=noun)
    if t.coin(0.4):
        t.tell("joy_wish", A=hero, O=noun)
    if t.coin(0.3):
        thanks(t, hero, boss)
    ending(t, hero, boss, noun)


def guilt(t: Teller, hero: str) -> None:
    """Arc: the hero breaks what a friend lent, hides it, tells the truth and is forgiven."""
    set_out(t, hero)
    friend, kind = someone(t)
    t.tell("friend_comes", A=friend, A_kind=kind, B=hero)
    roles = thing(t, "b")
    noun = roles["O"]
    t.tell("own_other", A=friend, B=hero, **roles)
    t.tell("borrow", A=hero, B=friend, O=noun)
    t.tell("leave", A=friend)
    t.paragraph()
    t.tell("break_borrowed", A=hero, B=friend, O=noun)
    t.tell("hide_it", A=hero, O=noun, S=spot(t))
    if t.coin(0.4):
        t.tell("guilt", A=hero, O=noun)
    t.paragraph()
    t.tell("come_back", A=friend)
    if t.coin(0.2):
        t.tell("ask_thing", A=friend, B=hero, O=noun)
    t.tell("confess", A=hero, B=friend, O=noun)
    t.tell("forgive", A=friend, B=hero)
    t.tell("mend_pair", O=noun, B=friend)
    t.tell("relieved", A=hero, B=friend)
    together(t, hero, friend)
    ending(t, hero, friend)
