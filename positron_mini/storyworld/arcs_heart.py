"""More arcs: troubles between friends, and of the seasons. See `arcs` for the shared steps."""

from __future__ import annotations

from positron_mini.storyworld.arcs import (
    Arc,
    broken,
    console,
    ending,
    guilt,
    helper,
    lost,
    set_out,
    stuck,
    thanks,
    together,
    treasure,
    wish,
)
from positron_mini.storyworld.cast import FAMILY, NEIGHBORS, elder, someone, spot, thing
from positron_mini.storyworld.lexicon import lexicon
from positron_mini.storyworld.teller import Teller


def friend_of(t: Teller, hero: str) -> str:
    """Bring in a friend who comes along; return the name."""
    name, kind = someone(t)
    t.tell(("meet", "friend_comes")[t.pick(2)], A=name, A_kind=kind, B=hero)
    if t.coin(0.2):
        t.tell("hello", A=name, B=hero)
    return name


def quarrel(t: Teller, hero: str) -> None:
    """Arc: the hero does not share, is left alone, says sorry and makes up."""
    noun = treasure(t, hero, "")
    set_out(t, hero, noun)
    friend = friend_of(t, hero)
    t.paragraph()
    t.tell("want_turn", A=friend, B=hero, O=noun)
    t.tell("refuse", A=hero, B=friend, O=noun)
    if t.coin(0.4):
        t.tell("quarrel", O=noun)
    t.tell("storm_off", A=friend, B=hero)
    t.tell("lonely_now", A=hero, B=friend, O=noun)
    t.paragraph()
    t.tell("go_after", A=hero, B=friend, O=noun)
    t.tell("sorry", A=hero, B=friend, O=noun)
    t.tell("make_up", A=friend, B=hero)
    if t.coin(0.5):
        t.tell("share_thing", A=friend, B=hero, O=noun)
    if t.coin(0.3):
        t.tell("feel_happy", A=(hero, friend)[t.pick(2)])
    together(t, hero, friend)
    ending(t, hero, friend, noun)


def lonely(t: Teller, hero: str) -> None:
    """Arc: the hero has no friend, is shy, and finds one."""
    noun = treasure(t, hero, "r") if t.coin() else ""
    set_out(t, hero, noun)
    t.tell("lonely", A=hero)
    if t.coin(0.35):
        t.tell("lonely_more", A=hero)
    t.paragraph()
    other, kind = someone(t)
    t.tell("see_other", A=other, A_kind=kind, B=hero)
    if t.coin(0.35):
        t.tell("shy", A=hero)
    if noun:
        t.tell("rolls", A=hero, B=other, O=noun)
        t.tell("give_back", A=other, B=hero, O=noun)
    t.tell("invite", A=other, B=hero)
    t.tell("accept", A=hero, B=other)
    t.paragraph()
    t.tell("play_pair")
    if t.coin(0.3):
        t.tell("share_snack", A=hero, B=other)
    if t.coin(0.4):
        t.tell("not_lonely", A=hero)
    ending(t, hero, other, noun)


def afraid(t: Teller, hero: str) -> None:
    """Arc: the hero is afraid of something and becomes brave with a friend."""
    set_out(t, hero)
    fear = t.choose(lexicon().fears)
    t.tell("afraid", A=hero, X=fear)
    if t.coin(0.4):
        t.tell("tremble", A=hero, X=fear)
    t.paragraph()
    friend = helper(t, hero)
    if t.coin(0.35):
        t.tell("ask_afraid", A=friend, B=hero, X=fear)
        t.tell("admit", A=hero, B=friend)
    if t.coin(0.4):
        t.tell("kind_word", A=friend, B=hero)
    t.tell("comfort", A=friend, B=hero)
    t.paragraph()
    t.tell("try_brave", A=hero, X=fear)
    if t.coin(0.6):
        t.tell("proud_brave", A=hero)
    if t.coin(0.35):
        thanks(t, hero, friend)
    together(t, hero, friend)
    ending(t, hero, friend)


def gift(t: Teller, hero: str) -> None:
    """Arc: the hero makes a birthday present by hand."""
    t.paragraph()
    friend, kind = someone(t)
    t.tell("plan_gift", A=hero, B=friend, B_kind=kind)
    if t.coin(0.5):
        t.tell("think_gift", A=hero)
    if t.coin(0.35):
        set_out_here(t, hero)
    t.paragraph()
    adviser = elder(t)
    t.tell("elder_comes", A=adviser, B=hero)
    t.tell("ask_idea", A=hero, B=adviser)
    t.tell("advise", A=adviser, B=hero)
    roles = thing(t, "g")
    noun = roles["O"]
    t.tell("make", A=hero, **roles)
    t.paragraph()
    t.tell("visit", A=hero, B=friend, O=noun)
    t.tell("give_gift", A=hero, B=friend, O=noun)
    if t.coin(0.6):
        t.tell("love_gift", A=friend, B=hero, O=noun)
    if t.coin(0.3):
        t.tell("feel_happy", A=(hero, friend)[t.pick(2)])
    together(t, hero, friend)
    ending(t, hero, friend)


def set_out_here(t: Teller, hero: str) -> None:
    """Tell the weather and a game, without leaving."""
    if t.coin():
        t.tell("air")
    else:
        t.tell("play", A=hero)


def astray(t: Teller, hero: str) -> None:
    """Arc: the hero loses the way, and a friend takes the hero home."""
    set_out(t, hero)
    t.tell("stray", A=hero)
    t.paragraph()
    friend = friend_of(t, hero)
    console(t, hero, friend, "tell_astray")
    t.tell("offer_guide", A=friend, B=hero)
    if t.coin(0.2):
        t.tell("clue", A=hero)
    t.paragraph()
    for _ in range(1 + t.pick(2)):
        t.tell("walk_pair")
    t.tell("home_found", A=hero, B=friend)
    if t.coin(0.5):
        t.tell("mother_thanks", A=hero, B=friend)
    if t.coin(0.3):
        thanks(t, hero, friend)
    ending(t, hero, friend)


def hiding(t: Teller, hero: str) -> None:
    """Arc: a game of hide-and-seek."""
    set_out(t, hero)
    friend = friend_of(t, hero)
    seeker, hider = hero, friend
    t.tell("start_hide", A=seeker, B=hider)
    if t.coin(0.6):
        t.tell("count", A=seeker)
    t.paragraph()
    for _ in range(1 + t.pick(2)):
        t.tell("seek", A=seeker, S=spot(t))
    if t.coin(0.35):
        t.tell("hear", A=seeker)
    t.tell("spot_hider", A=seeker, B=hider, S=spot(t))
    if t.coin(0.6):
        t.tell("laugh_found", A=hider, B=seeker)
    together(t, hero, friend)
    ending(t, hero, friend)


def cook(t: Teller, hero: str) -> None:
    """Arc: something is missing in the kitchen, and a neighbour has it."""
    t.paragraph()
    first = elder(t, *FAMILY)
    t.tell("elder_comes", A=first, B=hero)
    t.tell("cook", A=hero, B=first)
    food = t.choose(lexicon().foods)
    t.tell("missing", A=hero, F=food)
    t.tell("send", A=first, B=hero, F=food)
    t.paragraph()
    neighbor = elder(t, *NEIGHBORS)
    t.tell("neighbor", A=neighbor, B=hero, C=first)
    t.tell("fetch_ask", A=hero, B=neighbor, F=food)
    t.tell("fetch_give", A=neighbor, B=hero, F=food)
    t.paragraph()
    t.tell("bring_food", A=hero, B=first, F=food)
    t.tell("meal")
    if t.coin(0.6):
        t.tell("meal_joy", A=hero)
    if t.coin(0.4):
        thanks(t, hero, first)
    ending(t, hero, first)


def rain(t: Teller, hero: str) -> None:
    """Arc: rain spoils a picnic, and a good idea saves it."""
    set_out(t, hero, "", "nature", "water")
    friend = helper(t, hero)
    t.tell("picnic", A=hero, B=friend)
    t.tell("rain", A=hero)
    t.paragraph()
    t.tell("rain_idea", A=friend, B=hero)
    t.tell("inside_fun")
    if t.coin(0.35):
        t.tell("play_pair")
    t.tell("rain_joy", A=hero)
    if t.coin(0.3):
        thanks(t, hero, friend)
    ending(t, hero, friend)


def seed(t: Teller, hero: str) -> None:
    """Arc: a seed takes its time to grow."""
    t.paragraph()
    t.tell("plant", A=hero)
    if t.coin(0.7):
        t.tell("wait_seed", A=hero)
    if t.coin(0.3):
        set_out_here(t, hero)
    t.tell("sad_seed", A=hero)
    t.paragraph()
    friend = helper(t, hero)
    if t.coin(0.35):
        t.tell("ask_wrong", A=friend, B=hero)
        t.tell("tell_seed", A=hero, B=friend)
    t.tell("patience", A=friend, B=hero)
    t.paragraph()
    t.tell("grow", A=hero)
    if t.coin(0.3):
        t.tell("feel_happy", A=hero)
    if t.coin(0.35):
        t.tell("gift_flower", A=hero, B=friend)
    else:
        thanks(t, hero, friend)
    ending(t, hero, friend)


ARCS: tuple[Arc, ...] = (lost, broken, stuck, wish, guilt, quarrel, lonely, afraid, gift, astray, hiding, cook, rain, seed)
