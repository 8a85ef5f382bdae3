"""`RunRecord`: what the page reads of a run's directory, of a finished run or of any other."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.config.run_config import METHOD_ROW, RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.history import Ints
from bayeslora_cli.reports.ranks.history_reading import parse_changes
from bayeslora_cli.reports.results.outcomes import AT, load_outcomes
from bayeslora_cli.reports.results.rows import Results, load_results
from bayeslora_cli.runs.directory import RunDir, runs_below
from bayeslora_cli.runs.file_lock import holder
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport, kinds_of, layer_of
from bayeslora_cli.tasks.rank_correlation import Floats
from bayeslora_cli.tasks.task import Task

logger = logging.getLogger("bayeslora")

FINISHED, RUNNING, STOPPED, KILLED = "finished", "running", "stopped", "killed"
"""States of a run. A process that ends by itself, after an error or a signal as well, releases its
lock (stopped); one that is killed leaves its lock file behind."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as the page shows it."""

    run: RunDir
    config: RunConfig
    task: Task | None
    """None: the run has not recorded it yet."""
    environment: Mapping[str, Any]
    result: Mapping[str, Any] | None
    """Content of result.json; None: the run has not finished."""
    state: str
    """One of `FINISHED`, `RUNNING`, `STOPPED`, `KILLED`."""
    log: tuple[Mapping[str, Any], ...]
    """Lines of metrics.jsonl: log intervals and evaluations, which have `metrics`."""
    report: RankReport | None
    """Ranks at the end, or so far; None: nothing is known of them, or the run has no adapters."""
    changes: tuple[Ints, Floats, Floats | None] | None
    """Steps (t,), ranks (t, matrices) and bit widths of the allocations, as `parse_changes` returns
    them; None: without a report."""
    group: str
    """The row of the table of results: runs that differ only in the seed and the data."""
    column: str
    """The name of its data set."""
    series: int
    """Number of the group, which chooses the colour."""
    anchor: str
    """Name of the run in the page's links."""

    @property
    def name(self) -> str:
        """Data set, group and seed."""
        return f"{self.column}, {self.group}, seed {self.config.seed}"

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The lines of evaluations."""
        return [line for line in self.log if isinstance(line.get("metrics"), dict)]

    @property
    def intervals(self) -> list[Mapping[str, Any]]:
        """The lines of log intervals."""
        return [line for line in self.log if "metrics" not in line]

    @property
    def steps_done(self) -> int:
        """Number of steps that the files tell of."""
        if self.result is not None:
            return int(self.result["steps"])
        return 1 + max((int(line["step"]) for line in self.log), default=-1)

    @property
    def steps_planned(self) -> int | None:
        """Number of steps of the whole run; None: it is not known."""
        return None if self.result is not None else self.config.schedule_steps


def load_records(paths: Sequence[Path], at: str = AT[0]) -> tuple[tuple[RunRecord, ...], Results]:
    """Read the runs at `paths`, or anywhere below them, and the table of the finished ones.

    Runs below a path that cannot be read are left out, with a warning.

    Args:
        at: the evaluation that counts, one of `AT`.
    Raises:
        UserError: there is no run, or the run at a path cannot be read.
    """
    found = {run.path.resolve(): run for path in paths for run in _runs(path)}
    finished = [run.path for run in found.values() if run.finished]
    results = load_results(finished, at) if finished else Results(at=at, rows=())
    places = {
        outcome.run.path: (row.name, outcome.column, number)
        for number, row in enumerate(results.rows)
        for outcome in row.outcomes
    }
    names = {name: number for name, _, number in places.values()}
    records = []
    for run in found.values():
        if run.finished and run.path not in places:  # repeats another: the table has said so
            continue
        config = run.read_config()
        group, column, series = places.get(run.path, (_group(config), _column(config), -1))
        if series < 0:
            series = names.setdefault(group, len(names))
        records.append(_record(run, config, group, column, series))
    order = sorted(records, key=lambda r: (r.series, r.column, r.config.seed))
    return tuple(order), results


def _runs(path: Path) -> Iterator[RunDir]:
    """Yield the run at `path`, or else those below it that can be read.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir() or RunDir(path).started:
        yield RunDir.open(path)
        return
    problem: UserError = RunDirError(f"{path}: not a run directory, and there is no run below it")
    found = False
    left_out: dict[Path, UserError] = {}
    for run in runs_below(path):
        try:
            RunDir.open(run.path).read_config()
            if run.finished:
                list(load_outcomes(run.path, AT[0]))
        except UserError as error:
            problem = left_out[run.path] = error
        else:
            found = True
            yield run
    for reason, runs in by_reason(left_out).items():
        logger.warning("%s left out: %s", counted(runs), reason)
    if not found:
        raise problem


def by_reason(problems: Mapping[Path, UserError]) -> dict[str, list[Path]]:
    """Put the runs that have the same problem together; its text leaves out the run's own path."""
    found: dict[str, list[Path]] = {}
    for path, error in problems.items():
        reason = str(error).replace(f"{path}/", "").removeprefix(f"{path} ")
        found.setdefault(reason, []).append(path)
    return found


def counted(runs: Sequence[Path]) -> str:
    """Return the subject of a warning about these runs, with its verb."""
    first, *others = runs
    return f"{len(runs)} runs ({first} and others) are" if others else f"{first} is"


def detailed(records: Sequence[RunRecord], most: int) -> list[RunRecord]:
    """Choose at most about `most` runs: of each group on each data set equally many first seeds.

    If there are more groups than that, only those that come first have a run in it.
    """
    places: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        places.setdefault((record.column, record.group), []).append(record)
    counts = [len(members) for members in places.values()]
    seeds = max(counts)
    while seeds > 1 and sum(min(seeds, count) for count in counts) > most:
        seeds -= 1
    chosen = [r for members in places.values() for r in members[:seeds]][:most]
    kept = {record.anchor for record in chosen}
    return [record for record in records if record.anchor in kept]


def _record(run: RunDir, config: RunConfig, group: str, column: str, series: int) -> RunRecord:
    result = run.read_result() if run.finished else None
    report = _report(run, config, result)
    changes = None
    if report is not None:
        changes = parse_changes(_whole_lines(run.ranks_history), str(run.ranks_history), report)
    return RunRecord(
        run=run,
        config=config,
        task=_task(run),
        environment=run.read_json(run.environment) if run.environment.is_file() else {},
        result=result,
        state=FINISHED if result is not None else _unfinished(run),
        log=tuple(_log_lines(run.metrics)),
        report=report,
        changes=changes,
        group=group,
        column=column,
        series=series,
        anchor=f"run-{abs(hash_of(run.path))}",
    )


def _unfinished(run: RunDir) -> str:
    """Return the state of a run without a result."""
    if not run.lock.exists():
        return STOPPED
    return RUNNING if holder(run.lock) else KILLED


def hash_of(path: Path) -> int:
    """Return a number that stands for a path, the same in every process."""
    import zlib

    return zlib.crc32(str(path).encode("utf-8", "surrogateescape"))


def _task(run: RunDir) -> Task | None:
    if not run.task.is_file() or not (found := run.read_json(run.task)):
        return None
    return Task.from_json(found, str(run.task))


def _whole_lines(path: Path) -> str:
    """Read a log that may be growing: without its last line, if that is not complete."""
    if not path.is_file():
        return ""
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1].decode("utf-8", "replace")


def _log_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in _whole_lines(path).splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and is_number(found.get("step")):
            yield found


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _report(run: RunDir, config: RunConfig, result: Mapping[str, Any] | None) -> RankReport | None:
    """Read the ranks at the end; for a run that has not finished, make a report of those so far."""
    if result is not None:
        if not run.ranks.is_file():
            return None
        report = RankReport.from_json(run.read_json(run.ranks), str(run.ranks))
        return report if report.matrices else None
    lines = _whole_lines(run.ranks_history).splitlines()
    if not lines:
        return None
    try:
        first, last = json.loads(lines[0])["ranks"], json.loads(lines[-1])
        names, ranks, widths = list(first), last["ranks"], last.get("bits") or {}
        top = {name: max(int(config.init_rank or 0), int(first[name])) for name in names}
        matrices = tuple(
            MatrixReport(
                name=name, layer=layer_of(name), kind=kind, in_features=0, out_features=0,
                init_rank=top[name], rank=int(ranks[name]),
                kept=tuple(i < ranks[name] for i in range(top[name])), scores=None,
                bits=widths.get(name),
            )
            for name, kind in zip(names, kinds_of(names), strict=True)
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunDirError(f"{run.ranks_history} is corrupt: {error}") from error
    return RankReport(
        step=2**62, budget=sum(m.rank for m in matrices), criterion=config.criterion,
        matrices=matrices,
    )  # fmt: skip


def _group(config: RunConfig) -> str:
    """Return a row's name for a run that is in no table, without the settings."""
    parts = [getattr(config, name) for name in METHOD_ROW]
    rank = [f"r{config.target_rank}"] if METHODS[config.method].has_ranks else []
    return "-".join([*(str(p) for p in parts if p), *rank])


def _column(config: RunConfig) -> str:
    return str(config.task) if config.train_file is None else Path(config.train_file).stem
