"""What was trained and how well it does: figures of one run, or the table of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

from bayeslora_cli.config.entries.metrics import smaller_is_better
from bayeslora_cli.config.values import duration
from bayeslora_cli.reports.page.html import Html, Number, details, element, join, number, table
from bayeslora_cli.reports.page.records import FINISHED, RunRecord
from bayeslora_cli.reports.page.sections.repeat import introduction
from bayeslora_cli.reports.page.sections.section import COLOURS, Section
from bayeslora_cli.reports.results.outcomes import AT, ROW
from bayeslora_cli.reports.results.rows import Results
from bayeslora_cli.reports.results.table import COUNTED, Table

LISTED = 1_000
"""Largest number of rows of a table of runs."""
SHORT = 12
"""Up to this many runs the table of all metrics is unfolded."""
MARKS = {"best": "best", "second": "second", "": None}


def summary(records: Sequence[RunRecord], results: Results, shown: Sequence[RunRecord]) -> Section:
    """Write the numbers of one run as tiles and a table, or those of many runs as tables.

    Args:
        shown: the runs that the page shows in detail.
    """
    if len(records) == 1:
        (record,) = records
        parts: list[object] = [_tiles(record, results.at)]
        if record.result is not None:
            parts.append(_metrics(record))
    else:
        parts = [_results(results)] if results.rows else []
        if len(shown) < len(records):
            parts.append(_left_out(records, shown))
        listed, links = records[:LISTED], {record.anchor for record in shown}
        runs = _runs(listed, results.at, links)
        if len(records) > SHORT and results.rows:
            runs = details(f"All {len(records)} runs", runs, id="all-runs")
        parts.append(runs)
        parts += [_all_metrics(listed, results.at, links)] if results.rows else []
    return Section(anchor="summary", title="Results", body=join(parts))


def title(records: Sequence[RunRecord]) -> str:
    """Return the heading of the whole page."""
    if len(records) == 1:
        return f"{records[0].column}: {records[0].group}, seed {records[0].config.seed}"
    columns = dict.fromkeys(r.column for r in records)
    groups = len({r.group for r in records})
    methods = len({tuple(getattr(r.config, name) for name in ROW) for r in records})
    return (
        f"{len(records)} runs of {methods} {'methods' if methods > 1 else 'method'}"
        f"{f', in {groups} settings,' if groups > methods else ''} on {', '.join(columns)}"
    )


def lead(records: Sequence[RunRecord]) -> Html:
    """Write the sentence below the heading: what was trained, or how many runs have finished."""
    if len(records) == 1:
        return element("p", introduction(records[0]), class_="lead")
    states = Counter(r.state for r in records)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    models = ", ".join(dict.fromkeys(r.config.model for r in records))
    return element("p", f"{told}; trained from {models}.", class_="lead")


def _left_out(records: Sequence[RunRecord], shown: Sequence[RunRecord]) -> Html:
    """Say which runs the page shows in detail, and how to see the others."""
    groups, of = (Counter((r.column, r.group) for r in some) for some in (shown, records))
    seeds = max(groups.values())
    which = "the first seed" if seeds == 1 else f"the first {seeds} seeds"
    which += " of each method on each data set"
    if len(groups) < len(of):
        which += f" as far as there is room ({len(groups)} of {len(of)})"
    parts = [
        f"The table above counts all {len(records)} runs. Curves, ranks, scores and settings below "
        f"are those of {len(shown)} runs, {which}, so that the page stays "
        "small. To see others, name their directories, which the table of runs has: ",
        element("code", "bayeslora report DIRECTORY …"),
        f". Tables of runs end after the first {LISTED:,}." if len(records) > LISTED else "",
    ]
    return element("p", *parts, class_="note", id="detailed")


def _tiles(record: RunRecord, at: str) -> Html:
    """Write the numbers that a reader looks for first."""
    facts: list[tuple[str, object, str]] = []
    result = record.result
    if result is not None:
        form = ".4f" if smaller_is_better(result.get("selecting")) else ".2%"
        score = number(result[at].get("value"), form)
        where = f"{at.replace('_', ' ')}, after {result[at]['step'] + 1} steps"
        facts.append((str(result.get("selecting", "score")).replace("_", " "), score, where))
    if record.report is not None:
        initial = sum(m.init_rank for m in record.report.matrices)
        budget = record.report.budget
        facts.append(("ranks in use", number(budget, ",d"), f"of {initial:,} at first"))
    if result is not None:
        kept, trained = result.get("kept_parameters"), result.get("trainable_parameters")
        first = f"of {trained:,} at first" if isinstance(trained, int) else ""
        facts.append(("trained parameters kept", number(kept, ",d") if isinstance(kept, int)
                      else "", first))  # fmt: skip
        facts.append(("time", duration(result.get("seconds", 0)), f"{result['steps']:,} steps"))
    else:
        planned = record.steps_planned
        done = f"{record.steps_done:,}" + (f" of {planned:,}" if planned else "")
        facts.append(("steps", done, record.state))
        if record.evaluations:
            split, values = next(iter(record.evaluations[-1]["metrics"].items()))
            name, value = next(iter(values.items()), ("", None))
            facts.append((f"{name}, last evaluation", number(value, ".4f"), split))
    tiles = (
        element(
            "div",
            element("dt", name),
            element("dd", _shown(value), element("small", note), data_value=_kept(value)),
        )
        for name, value, note in facts
    )
    return element("dl", *tiles, class_="tiles")


def _shown(value: object) -> object:
    return value.text if isinstance(value, Number) else value


def _kept(value: object) -> str | None:
    return repr(value.value) if isinstance(value, Number) else None


def _metrics(record: RunRecord) -> Html:
    """Write the metrics of the evaluations that result.json names."""
    result = record.result or {}
    names = _metric_names([result[at] for at in AT])
    rows = [
        [
            at.replace("_", " "),
            result[at]["step"] + 1,
            *(number(_value(result[at], *name)) for name in names),
        ]
        for at in ("best", "best_at_budget", "last")
    ]
    caption = f"Metrics; the best is chosen by {result.get('selecting')}"
    return table(caption, ["evaluation", "step", *(_named(n, names) for n in names)], rows)


def _all_metrics(records: Sequence[RunRecord], at: str, links: Container[str]) -> Html:
    """Write every metric of each finished run."""
    done = [(r, r.result[at]) for r in records if r.result is not None]
    names = _metric_names([entry for _, entry in done])
    rows = [
        [
            _linked(r, r.name, links),
            entry["step"] + 1,
            *(number(_value(entry, *name)) for name in names),
        ]
        for r, entry in done
    ]
    caption = f"All metrics of each run: {COUNTED[at]}"
    found = table(caption, ["run", "step", *(_named(n, names) for n in names)], rows)
    return details("All metrics of each run", found, id="all-metrics", open=len(done) <= SHORT)


def _metric_names(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for entry in entries:
        for split, values in (entry.get("metrics") or {}).items():
            found |= dict.fromkeys((split, metric) for metric in values)
    return list(found)


def _value(entry: Mapping[str, Any], split: str, metric: str) -> Any:
    return ((entry.get("metrics") or {}).get(split) or {}).get(metric)


def _named(name: tuple[str, str], names: Sequence[tuple[str, str]]) -> str:
    split, metric = name
    several = len({s for s, _ in names}) > 1
    return f"{metric}, {split}".replace("_", " ") if several else metric.replace("_", " ")


def _results(results: Results) -> Html:
    """Write the table that `bayeslora table` prints."""
    found = Table(results=results)
    rows: list[list[object]] = []
    for row, (name, entries) in zip(results.rows, found.lines(), strict=True):
        cells: list[object] = []
        for column, entry in zip(results.columns, entries, strict=False):
            cell = row.cells.get(column)
            spread = element("small", f" ± {entry.spread}") if entry.spread else None
            mark = MARKS[entry.mark]
            text = element("span", entry.value, spread, class_=mark,
                           title=f"the {mark}" if mark else None)  # fmt: skip
            cells.append(
                element("span", text, data_value=None if cell is None else repr(cell.mean))
            )
        cells += [entry.value for entry in entries[len(results.columns) :]]
        rows.append([name, *cells])
    parts = [table("Results by method and data set", found.titles(), rows)]
    note = f"{found.caption()}. Bold is the best of a column, underlined the second."
    return join([*parts, element("p", note, class_="note")])


def _runs(records: Sequence[RunRecord], at: str, links: Container[str]) -> Html:
    """Write one line per run, with a link to how it was trained, or else its directory."""
    whole = all(r.anchor in links for r in records)
    rows = []
    for r in records:
        result = r.result or {}
        chosen = result.get(at) or {}
        planned = r.steps_planned
        steps = f"{r.steps_done:,}" + (f" of {planned:,}" if planned else "")
        rows.append(
            [
                _linked(r, f"{r.group}, seed {r.config.seed}", links),
                r.column,
                r.config.seed,
                r.state if r.state == FINISHED else element("strong", r.state),
                str(result.get("selecting", "")).replace("_", " "),
                number(chosen.get("value")),
                steps,
                duration(result["seconds"]) if "seconds" in result else "",
                "" if r.report is None else r.report.budget,
                *([] if whole else [element("code", r.run.path)]),
            ]
        )
    heads = ["run", "data", "seed", "state", "chosen by", "value", "steps", "time", "ranks in use",
             *([] if whole else ["directory"])]  # fmt: skip
    return table("The runs", heads, rows)


def _linked(record: RunRecord, name: str, links: Container[str]) -> Html:
    """Write a run's name, as a link to its settings if the page has them."""
    swatch = element("span", class_=f"swatch series-{record.series % COLOURS}")
    there = record.anchor in links
    return join([swatch, element("a", name, href=f"#{record.anchor}") if there else name])
