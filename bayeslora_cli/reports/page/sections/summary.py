"""What was trained and how well it does: figures of one run, or the table of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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

SHORT = 12
"""Up to this many runs the table of all metrics is unfolded."""
MARKS = {"best": "best", "second": "second", "": None}


def summary(records: Sequence[RunRecord], results: Results) -> Section:
    """Write the numbers of one run as tiles and a table, or those of many runs as tables."""
    if len(records) == 1:
        (record,) = records
        parts: list[object] = [_tiles(record, results.at)]
        if record.result is not None:
            parts.append(_metrics(record))
    else:
        parts = [_results(results)] if results.rows else []
        parts.append(_runs(records, results.at))
        parts += [_all_metrics(records, results.at)] if results.rows else []
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


def _all_metrics(records: Sequence[RunRecord], at: str) -> Html:
    """Write every metric of each finished run."""
    done = [(r, r.result[at]) for r in records if r.result is not None]
    names = _metric_names([entry for _, entry in done])
    rows = [
        [_linked(r, r.name), entry["step"] + 1, *(number(_value(entry, *name)) for name in names)]
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


def _runs(records: Sequence[RunRecord], at: str) -> Html:
    """Write one line per run, with a link to how it was trained."""
    rows = []
    for r in records:
        result = r.result or {}
        chosen = result.get(at) or {}
        planned = r.steps_planned
        steps = f"{r.steps_done:,}" + (f" of {planned:,}" if planned else "")
        rows.append(
            [
                _linked(r, f"{r.group}, seed {r.config.seed}"),
                r.column,
                r.config.seed,
                r.state if r.state == FINISHED else element("strong", r.state),
                str(result.get("selecting", "")).replace("_", " "),
                number(chosen.get("value")),
                steps,
                duration(result["seconds"]) if "seconds" in result else "",
                "" if r.report is None else r.report.budget,
            ]
        )
    heads = ["run", "data", "seed", "state", "chosen by", "value", "steps", "time", "ranks in use"]
    return table("The runs", heads, rows)


def _linked(record: RunRecord, name: str) -> Html:
    swatch = element("span", class_=f"swatch series-{record.series % COLOURS}")
    return join([swatch, element("a", name, href=f"#{record.anchor}")])
