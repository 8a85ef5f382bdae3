"""`Turn`: a part of a row that a causal language model reads; a dialogue is a tuple of turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

RAW = ""
"""Role of text that stands in a row as it is, rendered by no template."""
INSTRUCTION, RESPONSE = "instruction", "response"
"""Roles of a user and an assistant, rendered as plain text by a tokenizer without a template."""
SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
"""Roles of chat templates."""
TOOLS = "tools"
"""Role of the descriptions of functions in front of a chat: no turn of it, but another input of the
template, in `Turn.more`."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says, or a piece of raw text."""

    role: str
    """`RAW`, `INSTRUCTION`, `RESPONSE`, or a role that chat templates know."""
    text: str
    """What the turn says."""
    counted: bool
    """Whether the loss counts the prediction of its tokens."""
    more: str = ""
    """Other keys that the template gets with the turn, such as tool_calls, as a JSON object; "" if
    there are none. Of `TOOLS` a JSON array, the descriptions."""


Dialogue = tuple[Turn, ...]


def to_text(turns: Sequence[Turn]) -> str:
    """Return the one spelling of a dialogue that `Examples.first` holds, as JSON.

    A turn is [role, text, 0 or 1], with `more` as a fourth item if there is any.
    """
    rows = [
        [turn.role, turn.text, int(turn.counted), *([turn.more] if turn.more else [])]
        for turn in turns
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> Dialogue:
    """Read back what `to_text` returned."""
    return tuple(
        Turn(role, said, bool(counted), *more) for role, said, counted, *more in json.loads(text)
    )
