"""State and rules of the world: what must hold before an event and what is true after it.

A state is a table of facts, `"holder kite": "Tim"`. A rule is data: `holder O=A` in its needs requires that the actor holds the object;
in its effects it makes that true. The generator and the checker apply the same rules, so a story is right for both or for neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from positron_mini.storyworld.lexicon import lexicon

CHARACTERS = "ABC"
OBJECTS = "OQ"
PLACES = "PR"
HIM = {"he": "him", "she": "her"}
HIS = {"he": "his", "she": "her"}


class Contradiction(Exception):
    """An event that the state does not allow; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Character:
    """A person or animal in the story."""

    name: str
    kind: str
    pronoun: str
    group: str


@dataclass(frozen=True, slots=True)
class Term:
    """One need or effect: the fact's key, the comparison or assignment, and its values."""

    key: tuple[str, ...]
    operator: str  # "=", "!=", "?" (any value) or "!" (no value)
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Needs and effects of an event; `free` roles need not be present."""

    name: str
    needs: tuple[Term, ...]
    effects: tuple[Term, ...]
    new: frozenset[str]
    free: frozenset[str]


@dataclass(slots=True)
class State:
    """Facts at one moment of a story."""

    facts: dict[str, str] = field(default_factory=dict)
    cast: dict[str, Character] = field(default_factory=dict)
    things: dict[str, str] = field(default_factory=dict)  # noun -> adjective, "" while unknown
    focus: str = ""  # the last subject, which he or she can mean
    pair: tuple[str, str] | None = None  # which they can mean

    def copy(self) -> State:
        """An independent state with the same facts."""
        return State(dict(self.facts), dict(self.cast), dict(self.things), self.focus, self.pair)

    def here(self, name: str) -> bool:
        """Whether a character is in the scene."""
        return self.facts.get(f"here {name}") == "yes"

    def only_of_kind(self, name: str) -> bool:
        """Whether "the fox" can mean nobody else."""
        kind = self.cast[name].kind
        return sum(other.kind == kind for other in self.cast.values()) == 1


def parse_term(text: str) -> Term:
    """Parse a term: `mood A=sad,lonely`, `cond O!=broken`, `wish`, `!wish`."""
    for operator in ("!=", "="):
        key, found, value = text.partition(operator)
        if found:
            return Term(tuple(key.split()), operator, tuple(value.split(",")))
    return Term(tuple(text.lstrip("!").split()), "!" if text.startswith("!") else "?", ())


def parse_rule(name: str, needs: str, effects: str) -> Rule:
    """Parse a rule, terms separated by semicolons; `new X` introduces a role, `far X` frees it from being present."""
    wanted = [part.strip() for part in needs.split(";") if part.strip()]
    made = [part.strip() for part in effects.split(";") if part.strip()]
    new = frozenset(part[4:] for part in made if part.startswith("new "))
    far = frozenset(part[4:] for part in wanted if part.startswith("far "))
    return Rule(
        name,
        tuple(parse_term(part) for part in wanted if not part.startswith("far ")),
        tuple(parse_term(part) for part in made if not part.startswith("new ")),
        new,
        far,
    )


Roles = Mapping[str, str]


def _word(part: str, roles: Roles) -> str:
    return roles.get(part, part) if len(part) == 1 and part.isupper() else part


def holds(term: Term, state: State, roles: Roles) -> bool:
    """Whether a need is met."""
    value = state.facts.get(" ".join([_word(part, roles) for part in term.key]), "")
    if term.operator == "?":
        return bool(value)
    if term.operator == "!":
        return not value
    fits = value in [_word(option, roles) for option in term.values] or (value == "" and "-" in term.values)
    return fits == (term.operator == "=")


def _spoken(term: Term, roles: Roles) -> str:
    key = " ".join(_word(part, roles) for part in term.key)
    values = " or ".join(_word(value, roles) for value in term.values)
    return {"?": f"{key} is not so", "!": f"{key} is so already"}.get(term.operator, f"{key} {term.operator} {values} does not hold")


def apply(rule: Rule, state: State, roles: Roles) -> None:
    """Change the state by one event. Errors: Contradiction when the event cannot happen now; the state is then unchanged."""
    _check_roles(rule, state, roles)
    for term in rule.needs:
        if not holds(term, state, roles):
            raise Contradiction(f"{rule.name}: {_spoken(term, roles)}")
    for role in sorted(rule.new):
        _introduce(role, state, roles)
    for term in rule.effects:
        _set(term, state, roles)
    _move_focus(state, roles)


def _check_roles(rule: Rule, state: State, roles: Roles) -> None:
    names = [roles[role] for role in CHARACTERS if role in roles]
    if len(set(names)) < len(names):
        raise Contradiction(f"{rule.name}: {names[0]} cannot be both")
    if state.facts.get("ended") and not rule.name.startswith("end"):
        raise Contradiction(f"{rule.name}: the story was over")
    for role, value in roles.items():
        if role in rule.new:
            known = value in state.cast or value in state.things
            if known:
                raise Contradiction(f"{rule.name}: {value} is known already")
        elif role in CHARACTERS:
            _check_character(rule, role, value, state)
        elif role in OBJECTS:
            _check_thing(rule.name, value, roles.get(f"{role}.adjective", ""), state)
    _check_forms(rule.name, state, roles)


def _check_character(rule: Rule, role: str, name: str, state: State) -> None:
    if name not in state.cast:
        raise Contradiction(f"{rule.name}: {name} was not introduced")
    if role not in rule.free and not state.here(name):
        raise Contradiction(f"{rule.name}: {name} is not here")


def _check_thing(event: str, noun: str, adjective: str, state: State) -> None:
    if noun not in state.things:
        raise Contradiction(f"{event}: no {noun} was mentioned")
    if adjective and state.things[noun] not in ("", adjective):
        raise Contradiction(f"{event}: the {noun} is {state.things[noun]}, not {adjective}")


def _check_forms(event: str, state: State, roles: Roles) -> None:
    """Raise Contradiction if a pronoun, a kind or "they" does not fit the characters it refers to."""
    for role in CHARACTERS:
        if role not in roles:
            continue
        person = lexicon().people[roles[role]]
        if roles.get(f"{role}.pronoun", person.pronoun) != person.pronoun:
            raise Contradiction(f"{event}: {person.name} is {person.pronoun}, not {roles[f'{role}.pronoun']}")
        known = state.cast.get(person.name)
        if known and roles.get(f"{role}.kind", known.kind) != known.kind:
            raise Contradiction(f"{event}: {person.name} is a {known.kind}, not a {roles[f'{role}.kind']}")
    if "T" in roles:
        if state.pair is None or not all(state.here(name) for name in state.pair):
            raise Contradiction(f"{event}: there are no two here")
        if roles["T"] != "they" and sorted(roles["T"].split(" and ")) != sorted(state.pair):
            raise Contradiction(f"{event}: the two are {' and '.join(state.pair)}")


def _introduce(role: str, state: State, roles: Roles) -> None:
    value = roles[role]
    if role in OBJECTS:
        state.things[value] = roles.get(f"{role}.adjective", "")
        return
    person = lexicon().people[value]
    kind = roles.get(f"{role}.kind", person.kind)
    if not kind or (person.kind and kind != person.kind) or (not person.kind and kind not in lexicon().kinds):
        raise Contradiction(f"{value} cannot be a {kind or 'nobody'}")
    state.cast[value] = Character(value, kind, person.pronoun, person.group)
    state.facts[f"here {value}"] = "yes"
    hero = state.facts.setdefault("hero", value)
    if hero != value:
        state.pair = (hero, value)


def _set(term: Term, state: State, roles: Roles) -> None:
    words = [_word(part, roles) for part in term.key]
    if words[0] == "alone":
        for name in state.cast:
            state.facts[f"here {name}"] = "yes" if name == words[1] else ""
    elif words[0] == "arrive":
        state.facts[f"here {words[1]}"] = "yes"
        if words[1] != state.facts["hero"]:
            state.pair = (state.facts["hero"], words[1])
    elif words[0] == "leave":
        state.facts[f"here {words[1]}"] = ""
    else:
        value = _word(term.values[0], roles) if term.values else ("" if term.operator == "!" else "yes")
        state.facts[" ".join(words)] = "" if value == "-" else value


def _move_focus(state: State, roles: Roles) -> None:
    if "T" in roles:
        state.focus = ""
    elif "A" in roles:
        state.focus = roles["A"]
