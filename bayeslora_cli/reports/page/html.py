"""Builds HTML and the JSON inside it: every text is escaped unless it is an `Html`."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora_cli.reports.terminal_text import harmless

VOID = {"input", "meta", "br"}
"""Elements without an end tag."""


class Html(str):
    """Text that is HTML already; all other text is escaped where it is put into an element."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a table: `text` is shown, and `value` is kept in full beside it."""

    value: float | None
    """None: there is no such number."""
    text: str


def number(value: Any, form: str = ".4f") -> Number:
    """Return a table's number; what is no finite number is shown as an empty cell."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Number(None, "")
    return Number(value, format(value, form))


def clean(text: object) -> str:
    """Return text that can stand in any file in UTF-8, control characters written out."""
    return harmless(str(text)).encode("utf-8", "backslashreplace").decode()


def shortened(text: object, length: int) -> str:
    """Return the text, cut to at most `length` characters."""
    whole = str(text)
    return whole if len(whole) <= length else whole[: length - 1] + "…"


def plot_text(text: object) -> str:
    """Escape a text for a figure: plotly reads a few elements of HTML in its texts."""
    return html.escape(clean(text), quote=False)


def join(parts: Iterable[object]) -> Html:
    """Put parts one after the other, escaped unless they are `Html`."""
    return Html("".join(p if isinstance(p, Html) else html.escape(clean(p)) for p in parts))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Write an element.

    Args:
        children: texts, which are escaped, `Html`, or None, which is left out.
        attributes: `class_` is written as class, `data_value` as data-value; None and False leave
            an attribute out, True writes its name only.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(clean(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(c for c in children if c is not None)}</{tag}>")


def table(caption: object, heads: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Write a table in a box that scrolls sideways; the first cell of a row is its head."""
    head = element("tr", *(element("th", h, scope="col") for h in heads))
    body = [
        element("tr", element("th", _content(first), scope="row"), *map(_cell, rest))
        for first, *rest in rows
    ]
    inside = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", *body),
    )
    # the box takes the keyboard's focus, so that arrow keys can move what does not fit
    return element("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _content(value: object) -> object:
    return value.text if isinstance(value, Number) else value


def _cell(value: object) -> Html:
    if not isinstance(value, Number):
        return element("td", value)
    kept = None if value.value is None else repr(value.value)
    return element("td", value.text, class_="number", data_value=kept)


def details(summary: object, *children: object, **attributes: object) -> Html:
    """Write a part that is folded up until the reader opens it."""
    return element("details", element("summary", summary), *children, **attributes)


def script_json(value: Any, name: str) -> Html:
    """Write a JSON value as data in the page; no text in it can end the element that holds it.

    Args:
        name: the element's id.
    """
    text = json.dumps(finite(value), separators=(",", ":"))
    safe = text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
    return element("script", Html(safe), type="application/json", id=name)


def finite(value: Any) -> Any:
    """Return a JSON value with null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
