"""The views of `inspect-ranks`: each has a drawing, a JSON object and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.text import Text

from bayeslora_cli.reports.ranks.grids import (
    bit_difference_grid,
    bit_grid,
    difference_grid,
    mean_grid,
)
from bayeslora_cli.reports.ranks.heatmap import beside, draw_grid
from bayeslora_cli.reports.ranks.rank_agreement import Agreement, between, within
from bayeslora_cli.reports.ranks.run_groups import Group, in_order
from bayeslora_cli.reports.terminal_text import printable
from bayeslora_cli.runs.rank_report import MatrixReport


class View(Protocol):
    """A view: drawing, JSON object and table."""

    def to_json(self) -> dict[str, Any]:
        """Return the view's keys of the JSON object."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table; all have the same columns."""

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw for a terminal of `width` columns; in ASCII without `colour` and `unicode`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The ranks of a group, or their mean."""

    group: Group

    def to_json(self) -> dict[str, Any]:
        """Return {"matrices": [{"name", "kind", "layer", "in_features", "out_features",
        "init_rank", "rank", "std", "ranks", "kept"}], "agreement"}.

        Runs with quantizers have `bits` and `mean_bits` as well: the width of each operand, one
        entry per run, and their mean.

        `rank` and `std` are mean and standard deviation (n - 1; null for one run) over the runs,
        `ranks` and `kept` have one entry per run. `agreement` is null for one run, else
        `Agreement.to_json` over every two runs.
        """
        agreement = within(self.group)
        ranks, std = self.group.ranks, _std(self.group)
        return {
            "matrices": [
                {
                    **_names(matrix),
                    "init_rank": matrix.init_rank,
                    "rank": float(ranks[:, i].mean()),
                    "std": std[i],
                    "ranks": [report.matrices[i].rank for report in self.group.reports],
                    "kept": [list(report.matrices[i].kept) for report in self.group.reports],
                    **_bits([report.matrices[i] for report in self.group.reports]),
                }
                for i, matrix in enumerate(self.group.matrices)
            ],
            "agreement": None if agreement is None else agreement.to_json(),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per matrix; `kept` has a digit per triplet, 1 if kept, "|" between runs.

        It stands in brackets, or a program would read it as a number.
        """
        for row in self.to_json()["matrices"]:
            ranks, kept = row.pop("ranks"), row.pop("kept")
            operands = row.pop("bits", [])
            yield {
                "label": self.group.label,
                "runs": len(ranks),
                **row,
                "min": min(ranks),
                "max": max(ranks),
                "kept": f"[{'|'.join(''.join('01'[k] for k in of_run) for of_run in kept)}]",
                **{
                    f"bits_{name}": float(np.mean([found[name] for found in operands]))
                    for name in (operands[0] if operands else ())
                },
            }

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw the heatmaps of ranks and bit widths, and how far the runs agree."""
        lines = [Text(printable(self.group.title(), unicode=unicode))]
        grid = mean_grid(self.group)
        ranks = draw_grid(grid, width=width, colour=colour, unicode=unicode)
        if (bits := bit_grid(self.group.reports)) is not None:
            widths = draw_grid(bits, width=width, colour=colour, unicode=unicode)
            ranks = beside(ranks, widths, width)
        lines += [Text(), ranks]
        if (agreement := within(self.group)) is not None:
            lines += [Text(), _table({"": agreement}, ranges=True)]
        return Text("\n").join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panels:
    """The ranks of several groups, one after the other."""

    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        """Return {"panels": [...]}, with `Ranks.to_json` of each group."""
        return {"panels": [Ranks(group=group).to_json() for group in self.groups]}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of all groups; each row has its group's label."""
        for group in self.groups:
            yield from Ranks(group=group).rows()

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw the groups' heatmaps below each other."""
        drawn = (
            Ranks(group=group).draw(width=width, colour=colour, unicode=unicode)
            for group in in_order(self.groups)
        )
        return Text("\n\n\n").join(drawn)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two groups that adapt the same matrices, the second subtracted from the first."""

    a: Group
    b: Group

    def to_json(self) -> dict[str, Any]:
        """Return {"matrices": [{"name", "kind", "layer", "in_features", "out_features", "a",
        "a_std", "b", "b_std", "difference"}], "agreement": {"a", "b", "between"}}.

        If both groups have quantizers there are also `a_bits`, `b_bits` and `bits_difference`, a
        matrix's mean bit widths.

        `a` and `b` are mean ranks, `difference` is a - b; `a_std` and `b_std` are null for one
        run. The agreements are results of `Agreement.to_json`: over every two runs of one group
        (null for one run), and over each run of one group with each of the other.
        """
        ours, theirs = self.a.ranks.mean(axis=0).tolist(), self.b.ranks.mean(axis=0).tolist()
        std = _std(self.a), _std(self.b)
        bits = [_mean_widths(group) for group in (self.a, self.b)]
        return {
            "matrices": [
                {
                    **_names(matrix),
                    "a": ours[i],
                    "a_std": std[0][i],
                    "b": theirs[i],
                    "b_std": std[1][i],
                    "difference": ours[i] - theirs[i],
                    **_bits_beside(*(of_group[i] for of_group in bits)),
                }
                for i, matrix in enumerate(self.a.matrices)
            ],
            "agreement": {
                name: None if agreement is None else agreement.to_json()
                for name, agreement in self._agreements().items()
            },
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per matrix."""
        labels = {"label_a": self.a.label, "label_b": self.b.label}
        return ({**labels, **row} for row in self.to_json()["matrices"])

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw the heatmaps of the differences, and how far the runs agree."""
        titles = {"A": self.a.title(), "B": self.b.title()}
        lines = [Text(printable(f"{n}: {t}", unicode=unicode)) for n, t in titles.items()]
        grid = difference_grid(self.a, self.b)
        ranks = draw_grid(grid, width=width, colour=colour, unicode=unicode)
        if (bits := bit_difference_grid(self.a, self.b)) is not None:
            widths = draw_grid(bits, width=width, colour=colour, unicode=unicode)
            ranks = beside(ranks, widths, width)
        lines += [Text(), ranks, Text()]
        names = {"a": "within A", "b": "within B", "between": "A with B"}
        found = {names[n]: a for n, a in self._agreements().items() if a is not None}
        lines.append(_table(found, ranges=False))
        return Text("\n").join(lines)

    def _agreements(self) -> dict[str, Agreement | None]:
        return {"a": within(self.a), "b": within(self.b), "between": between(self.a, self.b)}


def _names(matrix: MatrixReport) -> dict[str, Any]:
    return {
        "name": matrix.name,
        "kind": matrix.kind,
        "layer": matrix.layer,
        "in_features": matrix.in_features,
        "out_features": matrix.out_features,
    }


def _mean_widths(group: Group) -> list[float | None]:
    """Return each matrix's mean bit width over the runs; None if a run has no quantizers."""
    columns = zip(*(report.matrices for report in group.reports), strict=True)
    return [_bits(alike).get("mean_bits") for alike in columns]


def _bits_beside(a: float | None, b: float | None) -> dict[str, float]:
    if a is None or b is None:
        return {}
    return {"a_bits": a, "b_bits": b, "bits_difference": a - b}


def _bits(matrices: Sequence[MatrixReport]) -> dict[str, Any]:
    """Return the bit widths of one matrix in several runs; empty if a run has none."""
    if any(m.bits is None for m in matrices):
        return {}
    mean = float(np.mean([m.mean_bits for m in matrices]))
    return {"bits": [dict(m.bits or {}) for m in matrices], "mean_bits": mean}


def _std(group: Group) -> list[float | None]:
    """Return each matrix's standard deviation (n - 1) of its rank over runs; None for one run."""
    if len(group.runs) == 1:
        return [None] * len(group.matrices)
    return [float(value) for value in np.std(group.ranks, axis=0, ddof=1)]


def _table(columns: Mapping[str, Agreement], *, ranges: bool) -> Text:
    """Draw agreements side by side, one line per measure."""
    rows: list[list[str]] = [["", *columns]] if any(columns) else []
    rows.append(["pairs of runs", *(str(a.pairs) for a in columns.values())])
    found = {name: agreement.to_json() for name, agreement in columns.items()}
    for key, name in (
        ("rank_correlation", "rank correlation"),
        ("in_common", "kept triplets in common"),
        ("by_chance", "  by chance"),
        ("by_chance_at_ranks", "  by chance at these ranks"),
    ):
        form = ".2f" if key == "rank_correlation" else ".0%"
        rows.append([name, *(_cell(value[key], form, ranges=ranges) for value in found.values())])
    width = 2 + max(len(first) for first, *_ in rows)
    lines = (f"{first:{width}}" + "".join(f"{c:<10}" for c in rest) for first, *rest in rows)
    return Text("\n".join(line.rstrip() for line in lines))


def _cell(value: float | dict[str, float] | None, form: str, *, ranges: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return format(value, form)
    text = format(value["mean"], form)
    if ranges:
        text += f" ({format(value['min'], form)} to {format(value['max'], form)})"
    return text
