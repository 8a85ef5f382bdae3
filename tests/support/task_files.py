"""Files of rows for kinds of tasks that a small encoder learns quickly: what guests complain of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ABOUT = {
    "food": ("the soup was cold", "my steak was burnt", "the salad tasted of nothing",
             "the bread was stale"),
    "price": ("far too expensive", "we paid a fortune", "the bill was a shock",
              "not worth the money"),
    "service": ("nobody greeted us", "the waiter was rude", "we waited an hour for a table",
                "they forgot our order"),
}  # fmt: skip
_NEUTRAL = ("we came on a Sunday", "it was raining", "my sister came along", "near the station")


def complaints(rows: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Return texts with what each complains about: none to three of `ABOUT`."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        about = sorted(name for name in ABOUT if draw.random() < 0.4)
        parts = [draw.choice(ABOUT[name]) for name in about] + [draw.choice(_NEUTRAL)]
        draw.shuffle(parts)
        found.append((", ".join(parts), about))
    return found


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON Lines; return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


_PEOPLE = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Emmy Noether", "Kurt", "Sofia")
_CITIES = ("Paris", "New York", "Buenos Aires", "Oslo", "Cape Town", "Lima")
_SAID = ("{p} lives in {c} .", "yesterday {p} flew to {c} with {q} .", "{c} is larger than {d} .",
         "nobody came .", "{p} and {q} met in {c}")  # fmt: skip


def tagged(rows: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Return words with BIO tags of people (PER) and cities (LOC)."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        p, q = draw.sample(_PEOPLE, 2)
        c, d = draw.sample(_CITIES, 2)
        own = {"{p}": (p, "PER"), "{q}": (q, "PER"), "{c}": (c, "LOC"), "{d}": (d, "LOC")}
        words: list[str] = []
        tags: list[str] = []
        for part in draw.choice(_SAID).split():
            text, kind = own.get(part, (part, "O"))
            words += (names := text.split())
            tags += ["O"] if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (len(names) - 1)]
        found.append((words, tags))
    return found


_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def questions(rows: int, seed: int = 0) -> list[tuple[str, list[str], int]]:
    """Return questions, two to four choices of which one word occurs in the question, its place."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        names = draw.sample(_NUMBERS, draw.randint(2, 4))
        place = draw.randrange(len(names))
        found.append((f"which of these is {names[place]} ?", names, place))
    return found


def paraphrases(rows: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Return two texts that complain of the same thing in other words, and one of another thing."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        about, other = draw.sample(sorted(ABOUT), 2)
        first, second = draw.sample(ABOUT[about], 2)
        where = draw.choice(_CITIES)
        ends = f"in {where}, at {draw.randint(1, 12)}"
        found.append((f"{first} {ends}", f"{ends} {second}", f"{draw.choice(ABOUT[other])} {ends}"))
    return found
