"""`Group`: finished runs that adapt the same matrices, found on disk and read together."""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bayeslora_cli.config.effects import deciding
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.run_names import RunName, names_of
from bayeslora_cli.reports.terminal_text import printable
from bayeslora_cli.runs.directory import RunDir, runs_below
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport
from bayeslora_cli.tasks.rank_correlation import Floats

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One or more finished runs that adapt the same matrices."""

    label: str
    """The last part that the runs' paths have in common."""
    runs: tuple[RunDir, ...]
    reports: tuple[RankReport, ...]
    """One report per run."""
    name: RunName | None = None
    """Task and method, beside other groups; None: the label names it."""

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
        """Triplets per run before any was pruned."""
        return sum(m.init_rank for m in self.matrices)

    def facts(self) -> str:
        """Describe number, length and criterion of the runs."""
        count = len(self.runs)
        steps = sorted({report.step + 1 for report in self.reports})
        length = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        told = f"{f'{count} runs' if count > 1 else '1 run'}, {length} steps"
        if self.name is not None:  # which has the criterion
            return told
        names = sorted({r.criterion for r in self.reports if r.criterion is not None})
        return f"{told}, " + (f"criterion {', '.join(names)}" if names else "constant ranks")

    def title(self) -> str:
        """Return name and facts in one line."""
        return f"{self.heading}, {self.facts()}"

    @property
    def heading(self) -> str:
        """Task and method, or else the label."""
        return self.label if self.name is None else printable(str(self.name))

    def to_json(self) -> dict[str, Any]:
        """Return {"label", "kept", "initial", "runs": [{"path", "step", "budget", "criterion"}]}.

        `kept` is the mean over the runs, `initial` counts the triplets before any was pruned, steps
        count from 0.
        """
        return {
            "label": self.label,
            "kept": float(self.ranks.sum(axis=1).mean()),
            "initial": self.initial,
            "runs": [
                {
                    "path": str(run.path),
                    "step": report.step,
                    "budget": report.budget,
                    "criterion": report.criterion,
                }
                for run, report in zip(self.runs, self.reports, strict=True)
            ],
        }


# --- on the disk ----------------------------------------------------------------------------------


def load_group(paths: Sequence[Path]) -> Group:
    """Read the runs at `paths`, or anywhere below them; a run named twice counts once.

    Raises:
        UserError: a path neither is a run nor holds one, a file is missing or corrupt, a run has no
            adapters, or the runs adapt different matrices.
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
    """Read the runs at `paths`, or anywhere below them; runs that differ only in the seed form one
    group.

    Raises:
        UserError: the same errors as `load_group`.
    """
    found: dict[tuple[str | None, str], list[tuple[RunDir, RankReport]]] = {}
    for run, report in _reports(paths):
        found.setdefault((report.criterion, _settings(run)), []).append((run, report))
    groups = [_group(alike) for alike in found.values()]
    if len(groups) == 1:
        return tuple(groups)
    names = names_of([json.loads(settings) for _, settings in found])
    return tuple(replace(group, name=name) for group, name in zip(groups, names, strict=True))


def in_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Order groups by task, and by method as in the table of results; without names, as given."""
    return tuple(sorted(groups, key=lambda g: () if g.name is None else g.name.place))


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
    """Return the settings that decide the run's result, as JSON, without seed and data path.

    They are read as they were written, by any version. Options without effect on the run's method
    are left out, since versions differ in their defaults.
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
    """Yield the run at `path`, or else the finished runs below it, by name."""
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
    """Return the last part that the absolute `paths` have in common."""
    common = Path(os.path.commonpath(paths))
    parts = common.parts[-2:] if common.name.startswith("seed-") else common.parts[-1:]
    return printable(str(Path(*parts)))


def check_same(
    a: tuple[RunDir, RankReport], b: tuple[RunDir, RankReport], *, same_init_rank: bool
) -> None:
    """Check that two runs adapt the same matrices.

    Args:
        same_init_rank: whether they must also begin with the same ranks.
    Raises:
        UserError: they differ; the message names both runs.
    """
    mine, other = ({m.name: m for m in report.matrices} for _, report in (a, b))
    beginning = f"{a[0].path} and {b[0].path} cannot be put together: "
    alone = [name for name in (*mine, *other) if name not in mine or name not in other]
    if alone:
        raise UserError(
            f"{beginning}{len(alone)} matrices are adapted in only one of them, such as {alone[0]}"
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
