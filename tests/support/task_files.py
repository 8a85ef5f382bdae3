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
