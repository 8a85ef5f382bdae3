"""Bit widths that gates have learned: by operand, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bayeslora_cli.reports.page.html import Html, details, element, join, number, table
from bayeslora_cli.reports.page.records import RunRecord
from bayeslora_cli.reports.page.sections.section import Section
from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.runs.rank_report import FLOAT_BITS, MatrixReport, RankReport

OPERANDS = (
    "Operands: the factors A, B and E, the input x of the adapter, a = x A' and h = a diag(E); of "
    "some runs W, the frozen weight, too."
)


def bit_widths(records: Sequence[RunRecord]) -> Section | None:
    """Tell the widths that gates have learned; None if nothing is quantized."""
    runs = [(r, r.report) for r in records if r.report is not None and _has_bits(r.report)]
    if not runs:
        return None
    parts: list[object] = [_costs([r for r, _ in runs])]
    groups: dict[tuple[str, str], list[tuple[RunRecord, RankReport]]] = {}
    for record, report in runs:
        groups.setdefault((record.column, record.group), []).append((record, report))
    for members in groups.values():
        record = members[0][0]
        matrices = [m for _, report in members for m in report.matrices]
        operands = list(dict.fromkeys(name for m in matrices for name in m.bits or {}))
        rows: list[list[object]] = [
            [kind or "all", *(number(_mean_width(matrices, kind, o), ".2f") for o in operands)]
            for kind in (*paper_order(m.kind for m in matrices), None)
        ]
        name = record.name
        if len(members) > 1:
            name = f"{record.column}, {record.group}, mean over {len(members)} seeds"
        widths = table(f"Mean width in bits, {name}", ["kind of matrix", *operands], rows)
        parts.append(details(name, widths, id=f"bits-{record.anchor}", open=len(parts) == 1))
    parts.append(element("p", OPERANDS, class_="note"))
    return Section(anchor="bits", title="Bit widths", body=join(parts))


def _costs(records: Sequence[RunRecord]) -> Html:
    places = {
        "mean rank": ("mean_rank", ".2f"), "mean width, bits": ("mean_bits", ".2f"),
    }  # fmt: skip
    costs = {
        "bit operations of the adapters": "adapter_relative",
        "with the base": "with_base_relative",
        "of the whole model": "model_relative",
        "storage": "storage_relative",
    }
    rows = []
    for r in records:
        result = r.result or {}
        cost = result.get("cost") or {}
        rows.append(
            [
                r.name,
                *(number(result.get(key), form) for key, form in places.values()),
                *(number(cost.get(key), ".2%") for key in costs.values()),
            ]
        )
    caption = f"Ranks, widths and cost, relative to {FLOAT_BITS} x {FLOAT_BITS} bits at first rank"
    return table(caption, ["run", *places, *costs], rows)


def _has_bits(report: RankReport) -> bool:
    return any(m.bits for m in report.matrices)


def _mean_width(matrices: Sequence[MatrixReport], kind: str | None, operand: str) -> float | None:
    found = [
        m.bits[operand] for m in matrices if m.bits and operand in m.bits and kind in (None, m.kind)
    ]
    return fmean(found) if found else None
