"""Puts the page together: sections, figures, style and script in one file without any request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.page.html import Html, element, join, script_json
from bayeslora_cli.reports.page.predictions import RunPredictions
from bayeslora_cli.reports.page.records import RunRecord, detailed
from bayeslora_cli.reports.page.sections.bits import bit_widths
from bayeslora_cli.reports.page.sections.comparison import comparison
from bayeslora_cli.reports.page.sections.curves import curves
from bayeslora_cli.reports.page.sections.predictions import calibration, examples
from bayeslora_cli.reports.page.sections.ranks import ranks
from bayeslora_cli.reports.page.sections.repeat import repeat
from bayeslora_cli.reports.page.sections.scores import posteriors, scores
from bayeslora_cli.reports.page.sections.section import Section
from bayeslora_cli.reports.page.sections.summary import lead, summary, title
from bayeslora_cli.reports.results.rows import Results
from bayeslora_cli.runs.atomic_write import replacing

HERE = Path(__file__).parent
DETAILED = 100
"""Largest number of runs that have curves, ranks, scores and settings in the page."""
_ICON = "data:,"  # none: else the browser asks for /favicon.ico


def sections(
    records: Sequence[RunRecord],
    results: Results,
    predicted: Mapping[str, RunPredictions] | None = None,
    notes: Mapping[str, int] | None = None,
    most: int = DETAILED,
) -> list[Section]:
    """Return the parts of the page that these runs have.

    The results are those of all runs; what comes after them is shown of at most `most`.

    Args:
        predicted: predictions of runs, by `RunRecord.anchor`.
        notes: why runs have none, with the number of these runs.
    """
    shown = detailed(records, most)
    found = [(r, predicted[r.anchor]) for r in shown if predicted and r.anchor in predicted]
    whole = [summary(records, results, shown), comparison(results)]
    parts = [
        curves(shown),
        ranks(shown),
        bit_widths(shown),
        scores(shown),
        calibration(found),
        posteriors(shown),
        examples(found, notes or {}),
        repeat(shown),
    ]
    if len(shown) < len(records):
        note = element("p", f"{len(shown)} of {len(records)} runs: ",
                       element("a", "which, and how to see others", href="#detailed"),
                       class_="note")  # fmt: skip
        parts = [part and replace(part, body=join([note, part.body])) for part in parts]
    return [part for part in (*whole, *parts) if part is not None]


def content(parts: Sequence[Section]) -> tuple[dict[str, Html], dict[str, Any]]:
    """Return the parts of the page's body by their anchors, and the figures by name."""
    links = (element("li", element("a", s.title, href=f"#{s.anchor}")) for s in parts)
    found = {"contents": element("ul", *links)}
    figures: dict[str, Any] = {}
    for part in parts:
        heading = element("h2", part.title, id=f"{part.anchor}-title")
        found[part.anchor] = join([heading, part.body])
        figures |= part.figures
    return found, figures


def page(records: Sequence[RunRecord], parts: Sequence[Section]) -> str:
    """Return the whole page, which needs no other file and asks for none."""
    bodies, figures = content(parts)
    made = f"written by bayeslora report, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    scripts = (plotly_script(), own_text("page.js"))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return document(
        title(records),
        bodies,
        join([lead(records), element("p", made, class_="made")]),
        head=element("meta", http_equiv="Content-Security-Policy", content=policy),
        end=join([script_json(figures, "figures"), *(_script(s) for s in scripts)]),
    )


def document(
    heading: str, bodies: Mapping[str, Html], line: Html, *, head: Html, end: Html,
    live: bool = False,
) -> str:  # fmt: skip
    """Return a page of these bodies.

    Args:
        bodies: the parts by anchor, as `content` returns them.
        line: stands below the heading.
        head: more of the head.
        end: scripts, at the end.
        live: whether the page's script fetches what is new.
    """
    parts = [
        element("section", body, id=anchor, aria_labelledby=f"{anchor}-title")
        for anchor, body in bodies.items()
        if anchor != "contents"
    ]
    top = [
        element("meta", charset="utf-8"),
        head,
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        Html(f'<link rel="icon" href="{_ICON}">'),
        element("title", f"{heading} · bayeslora"),
        element("style", Html(own_text("page.css"))),
    ]
    body = [
        element("a", "Skip to the results", href="#summary", class_="skip"),
        element("header", element("h1", heading, id="heading"), line),
        element("nav", bodies["contents"], aria_label="Contents", id="contents"),
        element("main", *parts, id="main", data_live=live),
        element("noscript", element("p", "Figures need JavaScript; every table is here without.")),
        end,
    ]
    whole = element("html", element("head", *top), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def write_page(path: Path, text: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from error


def check_page(path: Path | None) -> None:
    """Check, before anything is read, that a page can be made and written to `path`.

    Raises:
        UserError: plotly is missing, or the path names no page.
    """
    if find_spec("plotly") is None:
        raise UserError("a report needs plotly; pip install 'bayeslora[report]'")
    if path is None:
        return
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"--output {path}: the page is HTML; give a name that ends in .html")
    if path.is_dir():
        raise UserError(f"--output {path}: is a directory; give the name of a file")


@cache
def plotly_script() -> str:
    """Return plotly's own bundle of scripts, 4.8 MB."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def own_text(name: str) -> str:
    """Return the page's own style or script."""
    return (HERE / name).read_text(encoding="utf-8")


def _script(text: str) -> Html:
    return Html(f"<script>{text}</script>")


def _hash(text: str) -> str:
    """Return a script's place in the policy: no other script runs in the page."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
