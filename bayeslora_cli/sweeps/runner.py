"""Trains the runs of a sweep, one after another in this process or in parallel in others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.config.effects import kind
from bayeslora_cli.errors import BayesloraError, Preempted, UserError
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.sweeps.grid import PlannedRun

if TYPE_CHECKING:
    from rich.console import Console

    from bayeslora_cli.data.example_cache import ExampleCache
    from bayeslora_cli.training.run_log import Reporter

logger = logging.getLogger("bayeslora")


def run_sweep(
    runs: Sequence[PlannedRun],
    jobs: int,
    console: Console,
    reporter: Callable[[], Reporter],
    stop: Stop,
    processes: Processes = SINGLE,
) -> tuple[list[PlannedRun], dict[str, str]]:
    """Train all runs that are not done yet. A run that fails does not stop the others.

    Args:
        jobs: how many runs to train at a time; 1: in this process.
        reporter: makes the object that follows a run's steps, if this process trains the run.
    Returns:
        All runs, each in the directory where it is; the error messages of failed runs by the runs'
        labels.
    Raises:
        Preempted: a signal has come; the states are saved.
    """
    places, done, cache = _look_up(runs)
    places, done = processes.from_first((places, done))
    runs = [replace(run, place=place) for run, place in zip(runs, places, strict=True)]
    todo = [run for run, is_done in zip(runs, done, strict=True) if not is_done]
    if len(todo) < len(runs):
        logger.info("%d of %d runs are done already", len(runs) - len(todo), len(runs))
    if jobs > 1 and len(todo) > 1:
        from bayeslora_cli.sweeps.worker_pool import run_jobs

        return runs, run_jobs(todo, min(jobs, len(todo)), console, stop)
    # counted over all runs, done or not: a repeated command must compile the same
    kinds = Counter(kind(run.resolved.config) for run in runs)
    alike = [kinds[kind(run.resolved.config)] for run in todo]
    return runs, _one_by_one(todo, alike, reporter, stop, processes, cache)


def _look_up(
    runs: Sequence[PlannedRun],
) -> tuple[list[Path | None], list[bool], ExampleCache | None]:
    """Return where each run is, if its model or data have moved, and whether it is done.

    Returns:
        Also the rows that were read; None: none were.
    """
    done = [run.is_done() for run in runs]
    places: list[Path | None] = [None] * len(runs)
    doubtful = [i for i, run in enumerate(runs) if done[i] or run.may_have_moved()]
    if not doubtful:
        return places, done, None
    from bayeslora_cli.data.example_cache import ExampleCache
    from bayeslora_cli.training.preparation import check_unchanged, prepare

    cache = ExampleCache()
    for i in doubtful:
        run, resolved = runs[i].run, runs[i].resolved
        try:
            if not done[i] and (prepared := prepare(resolved, cache)).moved:
                run, places[i], done[i] = prepared.run, prepared.run.path, prepared.run.finished
                run.verify()
            if done[i]:
                check_unchanged(run, resolved.config, cache)
        except UserError:
            done[i] = False  # the training reports the problem
    return places, done, cache


def _one_by_one(
    runs: Sequence[PlannedRun],
    alike: Sequence[int],
    reporter: Callable[[], Reporter],
    stop: Stop,
    processes: Processes,
    cache: ExampleCache | None,
) -> dict[str, str]:
    """Train runs in this process; `alike`: for each, how many runs can use the same network."""
    problems: dict[str, str] = {}
    if not runs:
        return problems
    from bayeslora_cli.training.assembly import Workspace
    from bayeslora_cli.training.loop import train

    workspace = Workspace() if cache is None else Workspace(examples=cache)
    for number, planned in enumerate(runs, start=1):
        workspace.runs = alike[number - 1]
        logger.info("run %d of %d: %s", number, len(runs), planned.label)
        try:
            train(planned.resolved, reporter(), stop, workspace, processes)
        except Preempted:
            raise
        except BayesloraError as error:
            if processes.world > 1 and not error.on_all_processes:
                raise  # the other processes are still in this run: no process can go on
            problems[planned.label] = str(error)
            logger.error("%s failed: %s", planned.label, error)
        except Exception as error:  # a bug in one run does not stop the others
            if processes.world > 1:
                raise
            problems[planned.label] = f"{type(error).__name__}: {error}"
            logger.exception("%s failed", planned.label)
    return problems
