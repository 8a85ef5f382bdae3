"""`Results`: the scores of many runs by method row and task, as in the paper's Table I.

Only each run's result.json, config.toml and environment.json are read; no model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bayeslora_cli.config.catalogue import CRITERIA, METHODS, OBJECTIVES, OPTIMIZERS
from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.resolution import resolve, scale_schedule
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.reports.results.data_sets import column_names, data_sets
from bayeslora_cli.reports.results.models import model_names
from bayeslora_cli.reports.results.outcomes import (
    AT,
    GROUPS,
    ROW,
    Outcome,
    grouped,
    load_outcomes,
    nested,
    tasks_of,
)
from bayeslora_cli.reports.telling_settings import telling
from bayeslora_cli.tasks.task import DATA_CHECKSUM

logger = logging.getLogger("bayeslora")

_SOURCE = tuple(name for name, o in OPTIONS.items() if o.source)
"""Where the data are read from. Runs on other data are in other columns."""
_TOTAL = "schedule_steps"  # follows from the number of rows and other settings
_FITTED = tuple(n for n, o in OPTIONS.items() if not o.is_final and n not in (_TOTAL, *_SOURCE))
"""Follow from the backbone and the total number of steps."""
_DATA = ("data",)
"""Tells runs of a GLUE task apart that kept no checksum of their rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A row's scores on one data set, or over a group of tasks."""

    scores: Mapping[int, float]
    """Score by seed, in percent unless the smallest is the best."""
    mean: float
    smaller_is_better: bool = False
    """Whether the smallest score is the best, as of an nll."""

    @property
    def form(self) -> str:
        """How its numbers are written: percents with two decimals, losses with four."""
        return ".4f" if self.smaller_is_better else ".2f"

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None with fewer than two seeds."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs of one method row with the same settings."""

    key: tuple[Any, ...]
    """Values of the options in `ROW`."""
    model: str
    settings: Mapping[str, Any]
    """The settings that tell it from other rows with the same key."""
    outcomes: tuple[Outcome, ...]
    """Finished runs, one per task and seed."""

    @property
    def name(self) -> str:
        """The key as in the names of run directories, then the settings."""
        *parts, rank = self.key
        name = "-".join([*(p for p in parts if p), *([f"r{rank}"] if rank is not None else [])])
        return " ".join([name, *(f"{k}={_shown(v)}" for k, v in self.settings.items())])

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Cells by data set, then by those of `GROUPS` of which the row has all tasks."""
        found = {}
        for task in tasks_of(self.outcomes):
            outcomes = [o for o in self.outcomes if o.column == task]
            scores = {o.config.seed: o.score for o in outcomes}
            found[task] = Cell(
                scores=scores,
                mean=fmean(scores.values()),
                smaller_is_better=any(o.smaller_is_better for o in outcomes),
            )
        for group, tasks in GROUPS.items():
            if found.keys() >= set(tasks):
                cells = [found[task] for task in tasks]
                seeds = [seed for seed in cells[0].scores if all(seed in c.scores for c in cells)]
                whole = all(len(c.scores) == len(seeds) for c in cells)
                found[group] = Cell(
                    scores={s: fmean(c.scores[s] for c in cells) for s in seeds if whole},
                    mean=fmean(cell.mean for cell in cells),
                )
        return found

    @property
    def seeds(self) -> tuple[int, int]:
        """Return the smallest and the largest number of seeds over its tasks."""
        counts = [len(self.cells[task].scores) for task in tasks_of(self.outcomes)]
        return min(counts), max(counts)

    def mean(self, *names: str) -> float | None:
        """Return the mean over the runs of a number in result.json; None: not all runs have it.

        Args:
            names: the names that lead to the number, from the outermost object inwards.
        """
        found = [nested(o.result, names) for o in self.outcomes]
        return fmean(found) if all(isinstance(v, int | float) for v in found) else None

    @property
    def mean_rank(self) -> float | None:
        """The final rank, a mean over matrices and runs; None without adapters."""
        ranks = [r for o in self.outcomes for r in (o.result.get("ranks") or {}).values()]
        return fmean(ranks) if ranks else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """The rows of a table of results."""

    at: str
    """The evaluation that counts, one of `AT`."""
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Tasks and groups that any row has."""
        tasks = tasks_of([o for row in self.rows for o in row.outcomes])
        return (*tasks, *(g for g in GROUPS if any(g in row.cells for row in self.rows)))

    @property
    def smaller_is_better(self) -> frozenset[str]:
        """Columns whose smallest score is the best."""
        outcomes = (o for row in self.rows for o in row.outcomes)
        return frozenset(o.column for o in outcomes if o.smaller_is_better)


def load_results(paths: Sequence[Path], at: str = AT[0]) -> Results:
    """Read the runs at `paths`, or anywhere below them; a run named twice counts once.

    Runs below a path that cannot be read are left out, with a warning.

    Raises:
        UserError: a path neither is a run nor holds one, or a run's file is missing or corrupt.
    """
    found = {o.run.path.resolve(): o for path in paths for o in load_outcomes(path, at)}
    of_run = data_sets([(o.config, o.result) for o in found.values()])
    columns = column_names(of_run)
    outcomes = [
        replace(outcome, column=columns[data.identity])
        for outcome, data in zip(found.values(), of_run, strict=True)
    ]
    names = dict(zip((o.run.path for o in outcomes), model_names(outcomes), strict=True))
    models = grouped(outcomes, lambda o: names[o.run.path])
    rows = [
        row
        for model, of_model in models.items()
        for key, alike in grouped(of_model, lambda o: o.row).items()
        for row in _rows(key, model, alike, {"model": model} if len(models) > 1 else {})
    ]
    rows.sort(key=lambda row: (row.key[3] or 0, _places(*row.key[:3]), _in_order(row.settings)))
    return Results(at=at, rows=tuple(rows))


def _places(method: str, optimizer: str, criterion: str | None) -> tuple[int, int, int]:
    """Return the catalogue's order of a row; a row without a criterion comes first."""
    last = -1 if criterion is None else CRITERIA[criterion].place
    return METHODS[method].place, OPTIMIZERS[optimizer].place, last


# ---- rows: never a mean over different settings


def _rows(
    key: tuple[Any, ...], model: str, outcomes: Sequence[Outcome], named: Mapping[str, Any]
) -> Iterator[Row]:
    """Put the runs of one key and model into one row, if on each data set they differ only in the
    seed.

    Otherwise yield one row per combination of the settings in which runs of a same data set differ.
    Settings that differ only between data sets, as presets do, do not separate rows.
    """
    settings = {outcome.run.path: _settings(outcome) for outcome in outcomes}
    late = (*_FITTED, *_DATA)
    plain = dict.fromkeys(n for found in settings.values() for n in found if n not in late)
    # step numbers only where the other settings do not tell all: they follow from them
    for more in ((), _FITTED, (*_FITTED, *_DATA)):
        found = {
            path: {name: own[name] for name in (*plain, *more) if name in own}
            for path, own in settings.items()
        }
        differing, rows = _divided(outcomes, found)
        if not any(_mixed(row) for row in rows.values()):
            break
    for values, alike in rows.items():
        shown = {n: v for n, v in zip(differing, values, strict=True) if v is not None}
        yield Row(key=key, model=model, settings={**named, **shown}, outcomes=tuple(_once(alike)))


def _settings(outcome: Outcome) -> dict[str, Any]:
    """Return the settings of a run that differ from its task's preset, and `_DATA` if it counts."""
    config = outcome.config
    known = {name: getattr(config, name) for name in ("task", "train_file", *ROW)}
    if config.train_file is not None:  # the file may be elsewhere by now, or hold other rows
        known["task_type"] = config.task_type or outcome.kind
    typed = tuple((n, v) for n, v in known.items() if v is not None)
    usual = _usual(typed, config.schedule_steps)
    mine = affecting(config)
    kind = OBJECTIVES.get(outcome.kind or "")
    told = () if kind is None else kind.settings  # read with the rows, but they change no row
    for name in (*known, *_SOURCE, _TOTAL, "seed", "model"):
        if name not in told:
            mine.pop(name, None)
    found = {
        n: v
        for n, v in mine.items()
        if OPTIONS[n].always_told or usual is None or v != getattr(usual, n)
    }
    if DATA_CHECKSUM in outcome.result:
        return found
    return found | {name: getattr(config, name) for name in _DATA}


@lru_cache(maxsize=1024)
def _usual(typed: tuple[tuple[str, Any], ...], steps: int | None) -> RunConfig | None:
    """Return the configuration of only these options, in so many steps; None: it is invalid."""
    try:
        resolved = resolve(dict(typed))
        return resolved.config if steps is None else scale_schedule(resolved, steps)[0]
    except ConfigError:
        return None


def _divided(
    outcomes: Sequence[Outcome], settings: Mapping[Path, Mapping[str, Any]]
) -> tuple[tuple[str, ...], dict[Any, list[Outcome]]]:
    """Return the settings that differ between runs of one data set, and the rows by their values.

    Rows are told apart by the values in `settings`, which leave out what presets add; or by the
    runs' own values if these make fewer rows, as in a grid of which a value is a task's preset.
    """
    names = dict.fromkeys(name for found in settings.values() for name in found)
    data = grouped(outcomes, lambda o: o.column).values()
    differing = telling([*names], [[settings[o.run.path] for o in alike] for alike in data])
    typed = grouped(outcomes, lambda o: tuple(settings[o.run.path].get(n) for n in differing))
    whole = grouped(outcomes, lambda o: tuple(getattr(o.config, n) for n in differing))
    return differing, min(typed, whole, key=len)


def _mixed(row: Sequence[Outcome]) -> bool:
    """Return whether runs of one data set differ in more than their seed, or have the same seed."""
    return any(
        len({o.config.seed for o in alike}) < len(alike)
        or len({tuple(getattr(o.config, n) for n in (*_FITTED, _TOTAL)) for o in alike}) > 1
        for alike in grouped(row, lambda o: o.column).values()
    )


def _once(outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    """Keep the first run of each data set and seed; warn of the others."""
    for alike in grouped(outcomes, lambda o: (o.column, o.config.seed)).values():
        for copy in alike[1:]:
            logger.warning("%s is left out: it repeats %s", copy.run.path, alike[0].run.path)
        yield alike[0]


def _in_order(settings: Mapping[str, Any]) -> list[tuple[str, bool, float, str]]:
    """Make settings sortable: numbers by size, and before everything else."""
    return [
        (name, False, float(value), "")
        if isinstance(value, int | float)
        else (name, True, 0.0, _shown(value))
        for name, value in settings.items()
    ]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
