"""The allocations of several runs: found on the disk, put together, compared."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from bayeslora_cli.config.effects import deciding
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.heatmap import Grid, bit_grid, rank_grid
from bayeslora_cli.reports.terminal_shading import printable
from bayeslora_cli.runs.directory import RunDir, runs_below
from bayeslora_cli.runs.rank_report import GATES, MatrixReport, RankReport
from bayeslora_cli.tasks.rank_correlation import Floats, spearman

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Finished runs that adapt the same matrices, at least one."""

    label: str
    """What the runs have in common: the last part of their paths."""
    runs: tuple[RunDir, ...]
    reports: tuple[RankReport, ...]
    """One a run."""

    @property
    def matrices(self) -> tuple[MatrixReport, ...]:
        """The adapted matrices, with the first run's ranks."""
        return self.reports[0].matrices

    @property
    def ranks(self) -> Floats:
        """The ranks: (runs, matrices)."""
        return np.array([[m.rank for m in r.matrices] for r in self.reports], dtype=float)

    @property
    def initial(self) -> int:
        """Triplets of a run before any was pruned."""
        return sum(m.init_rank for m in self.matrices)

    def facts(self) -> str:
        """What the runs are: their number, length and criterion."""
        count = len(self.runs)
        steps = sorted({report.step + 1 for report in self.reports})
        length = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        names = sorted({r.criterion for r in self.reports if r.criterion is not None})
        return f"{f'{count} runs' if count > 1 else '1 run'}, {length} steps, " + (
            f"criterion {', '.join(names)}" if names else "constant ranks"
        )

    def title(self) -> str:
        """Label and facts."""
        return f"{self.label}, {self.facts()}"


# --- on the disk ----------------------------------------------------------------------------------


def load_group(paths: Sequence[Path]) -> Group:
    """Read the runs at `paths`, or anywhere below them; a run that is named twice counts once.

    Raises:
        UserError: a path that is no run and holds none, a file missing or corrupt, a run without
            adapters, or runs that adapt different matrices.
    """
    group = _group(_reports(paths))
    for what in ("criterion", "budget"):
        values = list(dict.fromkeys(str(getattr(report, what)) for report in group.reports))
        if len(values) > 1:
            logger.warning(
                "the runs differ in their %s (%s), and the mean is over all of them; "
                "--compare shows a difference",
                what, ", ".join(values),
            )  # fmt: skip
    return group


def load_groups(paths: Sequence[Path]) -> tuple[Group, ...]:
    """The runs at `paths`, or anywhere below them, those together that differ in the seed alone.

    Raises:
        UserError: as `load_group` does.
    """
    found: dict[str, list[tuple[RunDir, RankReport]]] = {}
    for run, report in _reports(paths):
        found.setdefault(f"{report.criterion} {_settings(run)}", []).append((run, report))
    return tuple(_group(alike) for alike in found.values())


def _reports(paths: Sequence[Path]) -> list[tuple[RunDir, RankReport]]:
    found = {run.path.resolve(): run for path in paths for run in _runs(path)}
    return [(run, _report(run)) for run in found.values()]


def _group(found: Sequence[tuple[RunDir, RankReport]]) -> Group:
    for run, report in found:
        check_same(found[0], (run, report), same_init_rank=True)
    return Group(
        label=_label([run.path.resolve() for run, _ in found]),
        runs=tuple(run for run, _ in found),
        reports=tuple(report for _, report in found),
    )


def _settings(run: RunDir) -> str:
    """What decides the run besides seed and place of the data; as written, of any version.

    Options without effect on its method are left out: versions differ in their defaults.
    """
    try:
        values = tomllib.loads(run.read_text(run.config))
    except tomllib.TOMLDecodeError as error:
        raise RunDirError(f"{run.config} is corrupt: {error}") from error
    kept = deciding(values)
    for name in ("seed", "data"):
        kept.pop(name, None)
    return json.dumps(kept, sort_keys=True, default=str)


def _runs(path: Path) -> Iterator[RunDir]:
    """The run at `path`, else the finished ones below it, by name."""
    if not path.is_dir() or RunDir(path).started:
        yield RunDir.open(path)
        return
    found = False
    for run in runs_below(path):
        if not run.ranks.is_file():
            logger.warning("%s is left out: the run has not finished", run.path)
        elif run.model.is_dir():
            logger.warning("%s is left out: the run has no adapters", run.path)
        else:
            found = True
            yield run
    if not found:
        raise RunDirError(f"{path}: not a run directory, and there is no finished run below it")


def _report(run: RunDir) -> RankReport:
    report = RankReport.from_json(run.read_json(run.ranks), str(run.ranks))
    if not report.matrices:
        raise UserError(f"{run.path}: the run has no adapters, and so no ranks; leave it out")
    return report


def _label(paths: Sequence[Path]) -> str:
    """The last part of what the absolute `paths` have in common."""
    common = Path(os.path.commonpath(paths))
    parts = common.parts[-2:] if common.name.startswith("seed-") else common.parts[-1:]
    return printable(str(Path(*parts)))


def check_same(
    a: tuple[RunDir, RankReport], b: tuple[RunDir, RankReport], *, same_init_rank: bool
) -> None:
    """Whether the matrices of two runs are the same.

    Args:
        same_init_rank: their triplets must be the same, too.
    Raises:
        UserError: they are not; names both runs.
    """
    mine, other = ({m.name: m for m in report.matrices} for _, report in (a, b))
    beginning = f"{a[0].path} and {b[0].path} cannot be put together: "
    alone = [name for name in (*mine, *other) if name not in mine or name not in other]
    if alone:
        raise UserError(
            f"{beginning}{len(alone)} matrices are adapted in one of them alone, such as {alone[0]}"
        )
    for name, x, y in ((name, x, other[name]) for name, x in mine.items()):
        if (x.in_features, x.out_features) != (y.in_features, y.out_features):
            raise UserError(
                f"{beginning}{name} is {x.out_features} x {x.in_features} in one, "
                f"{y.out_features} x {y.in_features} in the other"
            )
        if same_init_rank and x.init_rank != y.init_rank:
            raise UserError(
                f"{beginning}{name} starts with rank {x.init_rank} in one, {y.init_rank} in the "
                "other; --compare shows the difference of two such runs"
            )
    if list(mine) != list(other):
        raise UserError(f"{beginning}their matrices are in different orders")


# --- means and differences ------------------------------------------------------------------------


def mean_grid(group: Group) -> Grid:
    """Mean ranks with their standard deviations (n - 1) over the runs; of one run, its ranks."""
    grids = [rank_grid(report) for report in group.reports]
    if len(grids) == 1:
        return grids[0]
    count, kept = len(group.matrices), float(group.ranks.sum(axis=1).mean())
    spread = _filled(grids[0], *(x.std(axis=0, ddof=1) for x in _numbers(grids)))
    return _filled(
        grids[0],
        *(x.mean(axis=0) for x in _numbers(grids)),
        caption=f"{kept:.1f} of {group.initial} triplets kept ({kept / group.initial:.0%}), "
        f"mean rank {kept / count:.2f} of {count} matrices; mean and std over {len(grids)} runs",
        spread=spread,
    )


def difference_grid(a: Group, b: Group) -> Grid:
    """Mean rank in `a` minus mean rank in `b`, which adapt the same matrices."""
    ours, theirs = ([rank_grid(report) for report in group.reports] for group in (a, b))
    means = [
        x.mean(axis=0) - y.mean(axis=0)
        for x, y in zip(_numbers(ours), _numbers(theirs), strict=True)
    ]
    size = float(np.abs(a.ranks.mean(axis=0) - b.ranks.mean(axis=0)).mean())
    return _filled(
        ours[0],
        *means,
        caption=f"mean ranks, A minus B; mean absolute difference {size:.2f} "
        f"over {len(a.matrices)} matrices",
        signed=True,
    )


def bit_difference_grid(a: Group, b: Group) -> Grid | None:
    """Mean width in `a` minus mean width in `b`; None: one of them has none."""
    ours, theirs = bit_grid(a.reports), bit_grid(b.reports)
    if ours is None or theirs is None:
        return None
    means = [x[0] - y[0] for x, y in zip(_numbers([ours]), _numbers([theirs]), strict=True)]
    return _filled(
        ours,
        *means,
        caption="mean widths of a matrix's operands, A minus B",
        signed=True,
        unit="bits",
        averages=True,
    )


def _numbers(grids: Sequence[Grid]) -> tuple[Floats, Floats]:
    """(grids, kinds, layers), nan where there is no matrix, and (grids, outside)."""
    return (
        np.array([grid.values for grid in grids], dtype=float),
        np.array([[value for _, value in grid.outside] for grid in grids], dtype=float),
    )


def _filled(like: Grid, inside: Floats, outside: Floats, **rest: Any) -> Grid:
    """A grid of the form of `like` with other numbers."""
    return Grid(
        kinds=like.kinds,
        layers=like.layers,
        values=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in inside),
        outside=tuple((k, float(v)) for (k, _), v in zip(like.outside, outside, strict=True)),
        **{"caption": "", **rest},
    )


# --- agreement ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far pairs of runs allocate alike; an empty tuple or None where that is undefined."""

    pairs: int
    rank_correlation: tuple[float, ...]
    """Spearman's, of the matrices' ranks, of each pair; left out where all ranks are the same."""
    in_common: tuple[float, ...]
    """Of each pair, the share of kept triplets that both keep: 2 |A and B| / (|A| + |B|).

    A triplet is known by its place in its matrix. Under another seed the same place starts from
    another direction, so there it can only follow the ranks: compare `by_chance_at_ranks`.
    """
    by_chance: float | None
    """Mean share expected if each run kept as many triplets, drawn from all at random."""
    by_chance_at_ranks: float | None
    """Mean share expected if each run kept its ranks, the triplets in a matrix drawn at random."""

    def to_json(self) -> dict[str, Any]:
        """Means over the pairs with the smallest and the largest; null where undefined."""
        return {
            "pairs": self.pairs,
            "rank_correlation": _summary(self.rank_correlation),
            "in_common": _summary(self.in_common),
            "by_chance": self.by_chance,
            "by_chance_at_ranks": self.by_chance_at_ranks,
        }


def within(group: Group) -> Agreement | None:
    """Of each two runs of a group; None: it has one run alone."""
    return _agreement(combinations(group.reports, 2)) if len(group.runs) > 1 else None


def between(a: Group, b: Group) -> Agreement:
    """Of each run of `a` with each of `b`."""
    return _agreement(product(a.reports, b.reports))


def _agreement(pairs: Iterable[tuple[RankReport, RankReport]]) -> Agreement:
    count = 0
    correlations, common, chance, chance_at_ranks = [], [], [], []
    for a, b in pairs:
        count += 1
        x, y = (np.array([m.rank for m in report.matrices], dtype=float) for report in (a, b))
        correlation = spearman(x, y)
        if correlation is not None:
            correlations.append(correlation)
        sizes = [m.init_rank for m in a.matrices]
        if GATES in (a.criterion, b.criterion):  # whose places say no more than the ranks
            continue
        if sizes != [m.init_rank for m in b.matrices] or not x.any() or not y.any():
            continue
        ours, theirs = (np.array([k for m in report.matrices for k in m.kept]) for report in (a, b))
        total = x.sum() + y.sum()
        common.append(float(2 * (ours & theirs).sum() / total))
        chance.append(float(2 * x.sum() * y.sum() / sum(sizes) / total))
        chance_at_ranks.append(float(2 * (x * y / sizes).sum() / total))
    return Agreement(
        pairs=count,
        rank_correlation=tuple(correlations),
        in_common=tuple(common),
        by_chance=float(np.mean(chance)) if chance else None,
        by_chance_at_ranks=float(np.mean(chance_at_ranks)) if chance_at_ranks else None,
    )


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
