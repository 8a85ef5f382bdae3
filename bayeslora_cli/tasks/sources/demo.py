"""The built-in task `demo`: three-way inference over sentences of a small grammar.

Every row has a premise, a hypothesis and a class: `entailment` (if the premise is true, so is the
hypothesis), `contradiction` (then the hypothesis is false), `neutral` (then it may be either).

A hypothesis is about one participant. The premise affirms something about one participant, denies
it about another, and may leave it open about a third. There are two families of sentences:

- deeds of persons: "Anna, a friend of Tom, painted the fence, but Mary did not." says that Anna
  did, that Mary did not, and nothing about Tom;
- quantities of groups: "None of the nurses, all the bakers and some of the sailors sang." says
  that every baker did, that no nurse did, and leaves open whether every sailor did.

Rows come in triplets that share the hypothesis, one row of each class. With three participants, the
three premises are the same words in another order, so that a bag of words cannot tell the classes
apart. With two, that holds for entailment and contradiction. Premises about one participant, which
only the training split has, teach the meaning of the words. The split `ood` always has three
participants, with other names, nouns and verbs, and other sentences and quantifiers.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import TypeVar

from bayeslora_cli.tasks.task import Examples, Task

T = TypeVar("T")
Row = tuple[str, str, int]

DEMO = Task(
    name="demo",
    text_columns=("premise", "hypothesis"),
    label_column="label",
    classes=("entailment", "neutral", "contradiction"),
    metrics=("accuracy",),
    selecting="accuracy",
    ood_splits=("ood",),
)
ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
TRIPLETS = {"train": 1600, "validation": 150, "ood": 150}
PARTICIPANTS = {"train": (1, 1, 2, 3), "validation": (2, 3), "ood": (3,)}
"""Numbers of participants of a premise by split; a number listed twice is drawn twice as often."""
_SEEDS = {"train": 1, "validation": 2, "ood": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Sentences about who did something: {0} did, {1} did not, {2} is left open."""

    who: tuple[str, ...]
    """Participants."""
    what: tuple[tuple[str, str, str], ...]
    """Verbs in the past and in the base form, and what comes behind them."""
    three: tuple[str, ...]
    """Premises about three participants."""
    two: tuple[str, ...]
    """Premises about two participants, which say nothing about a third."""
    one: tuple[str, str, str]
    """Premises about only one participant {0}: affirmed, left open, denied."""
    affirming: str
    """The hypothesis that affirms {0}."""
    denying: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _verbs(text: str) -> tuple[tuple[str, str, str], ...]:
    """Parse "past/base and the rest, past/base"."""
    found = []
    for entry in text.split(", "):
        verb, space, rest = entry.partition(" ")
        past, base = verb.split("/")
        found.append((past, base, space + rest))
    return tuple(found)


def _in_any_order(*quantified: str) -> tuple[str, ...]:
    return tuple(f"{a}, {b} and {c} {{past}}" for a, b, c in permutations(quantified))


_DEEDS = Family(
    who=_words("Anna Tom Mary Paul Laura Peter Sarah David"),
    what=_verbs(
        "read/read the letter, visited/visit the museum, painted/paint the fence, "
        "cleaned/clean the kitchen, signed/sign the contract, tasted/taste the soup"
    ),
    three=(
        "{0}, a friend of {2}, {past}{rest}, but {1} did not",
        "{2} knows that {0} {past}{rest} but {1} did not",
    ),
    two=("{0} {past}{rest}, but {1} did not", "{1} did not {base}{rest}, but {0} did"),
    one=("{0} {past}{rest}", "a friend of {0} {past}{rest}", "{0} did not {base}{rest}"),
    affirming="{0} {past}{rest}",
    denying="{0} did not {base}{rest}",
)
_GROUPS = Family(
    who=_words("sailors teachers bakers doctors farmers lawyers singers painters"),
    what=_verbs("sang/sing, danced/dance, slept/sleep, laughed/laugh, swam/swim, arrived/arrive"),
    three=_in_any_order("all the {0}", "none of the {1}", "some of the {2}"),
    two=("all the {0} but none of the {1} {past}", "none of the {1} but all the {0} {past}"),
    one=("all the {0} {past}", "some of the {0} {past}", "none of the {0} {past}"),
    affirming="every one of the {0} {past}",
    denying="not every one of the {0} {past}",
)
FAMILIES = (_DEEDS, _GROUPS)
OOD_FAMILIES = (
    replace(
        _DEEDS,
        who=_words("Maria Oliver Julia Simon Helen Martin Sophie Daniel Rachel George"),
        what=_verbs(
            "watched/watch the match, opened/open the window, studied/study the map, "
            "praised/praise the book, washed/wash the car"
        ),
        three=(
            "as {2} told us, {0} {past}{rest}, while {1} did not",
            "{1} did not {base}{rest}, but {0}, the brother of {2}, did",
        ),
    ),
    replace(
        _GROUPS,
        who=_words("pilots students waiters dentists drivers actors writers miners guards tailors"),
        what=_verbs(
            "cried/cry, jumped/jump, cooked/cook, whistled/whistle, departed/depart, waited/wait"
        ),
        three=_in_any_order("each of the {0}", "not one of the {1}", "several of the {2}"),
        affirming="all the {0} {past}",
        denying="not all the {0} {past}",
    ),
)


def demo_examples() -> dict[str, Examples]:
    """Make the splits `train`, `validation` and `ood`; they are the same on every machine.

    No pair of sentences occurs in two splits.
    """
    seen: set[tuple[str, str]] = set()
    found = {}
    for split in TRIPLETS:
        found[split] = _split(split, seen)
        seen |= set(zip(found[split].first, found[split].second or (), strict=True))
    return found


def _split(split: str, seen: Set[tuple[str, str]]) -> Examples:
    """Make a split without the pairs of sentences in `seen`."""
    rng = Random(_SEEDS[split])
    rows: list[Row] = []
    while len(rows) < 3 * TRIPLETS[split]:
        family = _pick(rng, OOD_FAMILIES if split == "ood" else FAMILIES)
        triplet = _triplet(rng, family, participants=_pick(rng, PARTICIPANTS[split]))
        if not any((premise, hypothesis) in seen for premise, hypothesis, _ in triplet):
            rows += triplet
    rows = _shuffled(rng, rows)
    return Examples(
        first=[row[0] for row in rows],
        second=[row[1] for row in rows],
        labels=[row[2] for row in rows],
    )


def _triplet(rng: Random, family: Family, *, participants: int) -> list[Row]:
    """Make a row of each class for one hypothesis."""
    first, second, third, *_ = _shuffled(rng, family.who)
    past, base, rest = _pick(rng, family.what)

    def sentence(template: str, *who: str) -> str:
        text = template.format(*who, past=past, base=base, rest=rest)
        return text[0].upper() + text[1:] + "."

    # the hypothesis is about `first`, which is affirmed, left open, denied
    if participants == 1:
        premises = [sentence(template, first) for template in family.one]
    else:
        template = _pick(rng, family.three if participants == 3 else family.two)
        parts = ((first, second, third), (second, third, first), (third, first, second))
        premises = [sentence(template, *who) for who in parts]
    affirming = rng.random() < 0.6
    hypothesis = sentence(family.affirming if affirming else family.denying, first)
    labels = (ENTAILMENT, NEUTRAL, CONTRADICTION)
    if not affirming:
        labels = (CONTRADICTION, NEUTRAL, ENTAILMENT)
    return [(premise, hypothesis, label) for premise, label in zip(premises, labels, strict=True)]


# ---- chance: of `Random`, Python promises only `random` to stay the same between versions


def _pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    rest = list(items)
    for last in range(len(rest) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        rest[last], rest[other] = rest[other], rest[last]
    return rest
