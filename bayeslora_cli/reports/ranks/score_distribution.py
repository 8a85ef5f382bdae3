"""`Scores`: the distribution of the triplets' scores, and the threshold of pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.reports.run_summary import posterior_line
from bayeslora_cli.reports.terminal_text import printable
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.rank_correlation import Floats

Bools = NDArray[np.bool_]
BINS = 16
"""Approximate number of bins between the smallest and the largest score."""
QUANTILES = {"min": 0.0, "10%": 0.1, "50%": 0.5, "90%": 0.9, "max": 1.0}
KEPT, PRUNED, FROM = "kept", "pruned", "score from"


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts of triplets by the logarithm of their scores."""

    edges: Floats
    """(bins + 1,): scores that rise by a constant factor; the threshold is one of them."""
    kept: NDArray[np.int64]
    """(bins,): kept triplets."""
    pruned: NDArray[np.int64]
    """(bins,): pruned triplets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of all triplets of a group's runs, which share one criterion."""

    group: Group
    values: Floats
    """(triplets,): scores, run after run, matrix after matrix."""
    kept: Bools
    """(triplets,): whether each triplet is kept."""
    kinds: tuple[str, ...]
    """For each triplet, the kind of its matrix."""
    thresholds: tuple[float | None, ...]
    """For each run that keeps n triplets, the n-th largest score; None: it keeps all or none.

    The scores are those of the saved adapter, but the triplets were chosen when the budget was
    reached: so a kept triplet may lie below the threshold (`misplaced`).
    """
    misplaced: tuple[int, ...]
    """For each run, the number of kept triplets below its threshold, and of pruned ones above."""
    notes: tuple[dict[str, Any] | None, ...]
    """For each run, the summary of its posterior in result.json."""

    @property
    def threshold(self) -> float | None:
        """The geometric mean of the runs' positive thresholds; None: there is none."""
        found = [t for t in self.thresholds if t]
        return float(np.exp(np.mean(np.log(found)))) if len(found) > 1 else next(iter(found), None)

    def histogram(self) -> Histogram | None:
        """Count the positive scores in bins; None if there are none."""
        positive = self.values > 0
        if not positive.any():
            return None
        logs = np.log10(self.values[positive])
        origin = np.log10(self.threshold) if self.threshold else logs.min()
        width = float(np.ptp(logs)) / BINS or 1.0
        # relative to the threshold, so that it is an edge between bins exactly
        bins = np.floor((logs - origin) / width).astype(np.int64)
        low, count = bins.min(), int(np.ptp(bins)) + 1
        kept, pruned = (
            np.bincount(bins[mask] - low, minlength=count)
            for mask in (self.kept[positive], ~self.kept[positive])
        )
        edges = 10 ** (origin + width * np.arange(low, low + count + 1))
        return Histogram(edges=edges, kept=kept, pruned=pruned)

    def parts(self) -> Iterator[tuple[str, Bools]]:
        """Yield name and members of each part: all, kept, pruned, and each kind of matrix."""
        yield "all", np.ones_like(self.kept)
        yield KEPT, self.kept
        if not self.kept.all():
            yield PRUNED, ~self.kept
        kinds = np.array(self.kinds)
        for kind in paper_order(self.kinds):
            yield kind, kinds == kind

    def __repr__(self) -> str:
        return str(self.draw(width=100, colour=False, unicode=True))

    def to_json(self) -> dict[str, Any]:
        """Return {"thresholds": [run], "misplaced": [run], "quantiles": {part: {"triplets", "kept",
        "min", "10%", "50%", "90%", "max"}}, "histogram": {"edges": [bins + 1], "kept": [bins],
        "pruned": [bins]}, "zeros", "posterior": [run]}.

        The parts are "all", "kept", "pruned" and the kinds of matrices. `histogram` counts the
        positive scores (null if there are none), `zeros` the others. `posterior` is the summary of
        the posterior in the run's result.json, or null.
        """
        histogram = self.histogram()
        return {
            "thresholds": list(self.thresholds),
            "misplaced": list(self.misplaced),
            "quantiles": {
                name: {
                    "triplets": int(mask.sum()),
                    "kept": int((mask & self.kept).sum()),
                    **self._quantiles(mask),
                }
                for name, mask in self.parts()
            },
            "histogram": None
            if histogram is None
            else {
                "edges": histogram.edges.tolist(),
                "kept": histogram.kept.tolist(),
                "pruned": histogram.pruned.tolist(),
            },
            "zeros": int((self.values == 0).sum()),
            "posterior": list(self.notes),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per triplet."""
        for run, report in zip(self.group.runs, self.group.reports, strict=True):
            for matrix in report.matrices:
                assert matrix.scores is not None
                for index, score in enumerate(matrix.scores):
                    yield {
                        "run": printable(str(run.path)),
                        "name": matrix.name,
                        "kind": matrix.kind,
                        "layer": matrix.layer,
                        "triplet": index,
                        "score": score,
                        "kept": int(matrix.kept[index]),
                    }

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw the histogram with the threshold, largest scores on top, then the quantiles."""
        lines = [Text(printable(self.group.title(), unicode=unicode)), Text()]
        if (histogram := self.histogram()) is not None:
            lines += self._bars(histogram, width=width, colour=colour, unicode=unicode)
        zeros = int((self.values == 0).sum())
        if zeros:
            lines.append(Text(f"{zeros} scores are 0"))
        lines += [Text(), *self._quantile_lines()]
        found = [(r.path.name, n) for r, n in zip(self.group.runs, self.notes, strict=True) if n]
        texts = [f"{name}: {posterior_line(summary)}" for name, summary in found]
        notes = [str(summary["note"]) for _, summary in found if summary.get("note")]
        texts += [line for note in notes[:1] for line in wrap(f"note: {note}", width)]
        if texts:
            lines += [Text(), *(Text(printable(text, unicode=unicode)) for text in texts)]
        return Text("\n").join(lines)

    def _quantiles(self, mask: Bools) -> dict[str, float | None]:
        if not mask.any():
            return dict.fromkeys(QUANTILES)
        found = np.quantile(self.values[mask], list(QUANTILES.values()))
        return dict(zip(QUANTILES, found.tolist(), strict=True))

    def _bars(
        self, histogram: Histogram, *, width: int, colour: bool, unicode: bool
    ) -> Iterator[Text]:
        from_scores = _distinct(histogram.edges.tolist())
        name = max(len(FROM), *map(len, from_scores))
        counts = max(len(PRUNED), len(str(len(self.values))))
        room = max(10, width - name - 2 * (2 + counts) - 3)
        most = int((histogram.kept + histogram.pruned).max())
        characters = ("█", "░") if unicode else ("#", ".")
        styles = ("#00af87", "#949494") if colour else ("", "")
        legend = Text(f"{FROM:>{name}}  {KEPT:>{counts}}  {PRUNED:>{counts}}   ")
        for text, character, style in zip((KEPT, PRUNED), characters, styles, strict=True):
            legend.append(character * 2, style).append(f" {text}  ")
        legend.rstrip()
        yield legend
        for i in reversed(range(len(histogram.kept))):
            pair = int(histogram.kept[i]), int(histogram.pruned[i])
            line = Text(f"{from_scores[i]:>{name}}  {pair[0]:>{counts}}  {pair[1]:>{counts}}   ")
            # both ends rounded, so that the bar's length tells the sum
            ends = [round(room * end / most) for end in (pair[0], sum(pair))]
            lengths = (ends[0], ends[1] - ends[0])
            for length, character, style in zip(lengths, characters, styles, strict=True):
                line.append(character * length, style)
            line.rstrip()
            yield line
            if self.threshold and np.isclose(histogram.edges[i], self.threshold, rtol=1e-12):
                yield self._threshold_line(width, dash="─" if unicode else "-")

    def _threshold_line(self, width: int, dash: str) -> Text:
        found = [t for t in self.thresholds if t]
        low, high = f"{min(found):.4g}", f"{max(found):.4g}"
        text = f"threshold {low}" if low == high else f"thresholds {low} to {high}"
        if any(self.misplaced):
            text += f", {sum(self.misplaced)} kept below"
        return Text(f"{dash * 2} {text} ".ljust(width, dash))

    def _quantile_lines(self) -> Iterator[Text]:
        rows = [["", "triplets", KEPT, *QUANTILES]]
        for name, mask in self.parts():
            found = ["-" if v is None else f"{v:.4g}" for v in self._quantiles(mask).values()]
            count, kept = int(mask.sum()), int((mask & self.kept).sum())
            rows.append([name, str(count), f"{kept / count:.0%}" if count else "-", *found])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *rest in rows:
            cells = (f"{cell:>{w}}" for cell, w in zip(rest, widths[1:], strict=True))
            yield Text("  ".join([f"{first:{widths[0]}}", *cells]))


def load_scores(group: Group) -> Scores:
    """Read the scores of a group's triplets.

    Raises:
        UserError: a run has no scores, the runs have several criteria, or result.json is corrupt.
    """
    criteria = list(dict.fromkeys(report.criterion for report in group.reports))
    if len(criteria) > 1:
        raise UserError(
            f"--scores: the criteria {', '.join(map(str, criteria))} have no scale in common; "
            "show only runs of one criterion"
        )
    values, kept, kinds, thresholds, misplaced, notes = [], [], [], [], [], []
    for run, report in zip(group.runs, group.reports, strict=True):
        if any(m.scores is None for m in report.matrices):
            raise UserError(f"--scores: {run.path} has none, its ranks are constant; leave it out")
        scores = np.array([s for m in report.matrices for s in m.scores or ()], dtype=float)
        mask = np.array([k for m in report.matrices for k in m.kept], dtype=bool)
        threshold = _threshold(scores, mask)
        values.append(scores)
        kept.append(mask)
        kinds += _kinds(report)
        thresholds.append(threshold)
        misplaced.append(0 if threshold is None else int((scores[mask] < threshold).sum()))
        result = run.read_json(run.result)
        notes.append(result.get("posterior"))
    return Scores(
        group=group,
        values=np.concatenate(values),
        kept=np.concatenate(kept),
        kinds=tuple(kinds),
        thresholds=tuple(thresholds),
        misplaced=tuple(misplaced),
        notes=tuple(n if isinstance(n, dict) else None for n in notes),
    )


def _threshold(scores: Floats, kept: Bools) -> float | None:
    budget = int(kept.sum())
    return None if budget in (0, len(scores)) else float(np.sort(scores)[-budget])


def _kinds(report: RankReport) -> list[str]:
    return [m.kind for m in report.matrices for _ in m.kept]


def _distinct(values: Sequence[float]) -> list[str]:
    """Write numbers with as few digits as tell them apart, at least three."""
    for digits in range(3, 17):
        texts = [f"{value:#.{digits}g}".rstrip(".") for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts
