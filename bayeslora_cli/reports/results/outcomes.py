"""`Outcome`: the task, configuration and score of a finished run, read back from its directory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_cli.config.entries.metrics import smaller_is_better
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.runs.directory import RunDir, runs_below

logger = logging.getLogger("bayeslora")

GROUPS: dict[str, tuple[str, ...]] = {
    "group1": ("mnli", "qqp", "qnli", "sst2"),
    "group2": ("cola", "stsb", "mrpc", "rte"),
}
GROUPS["all"] = (*GROUPS["group1"], *GROUPS["group2"])
"""The paper's groups of tasks (Table I), in its order."""
AT = ("best_at_budget", "best", "last")
"""Evaluations of a run that can count, as result.json names them."""
ROW = tuple(name for name, o in OPTIONS.items() if o.part_of_name in ("row", "rank"))
"""Options that name a row of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A finished run and its score."""

    run: RunDir
    task: str
    config: RunConfig
    score: float
    """The task's own metric, in percent if the largest value is the best."""
    result: Mapping[str, Any]
    """Content of result.json."""
    kind: str | None = None
    """The kind of its task, a key of `config.catalogue.OBJECTIVES`; None: the run has not recorded
    it."""
    weights: str = ""
    """The checksum of its pretrained model's weights; "" if the run has not recorded it."""
    column: str = ""
    """The name of its data set in the table (`data_sets.column_names`); "" before it has one."""

    @property
    def smaller_is_better(self) -> bool:
        """Whether the smallest score is the best."""
        return smaller_is_better(self.result.get("selecting"))

    @property
    def row(self) -> tuple[Any, ...]:
        """Values of the options in `ROW`; a method without adapters has no rank."""
        c = self.config
        rank = c.target_rank if self.result.get("ranks") else None
        return c.method, c.optimizer, c.criterion, rank


def load_outcomes(path: Path, at: str) -> Iterator[Outcome]:
    """Read the run at `path`, or all finished runs below it.

    Runs below `path` that cannot be read are left out, with a warning.

    Args:
        at: the evaluation that counts, one of `AT`.
    Raises:
        UserError: the run at `path` cannot be read, or there is no readable run below it.
    """
    if not path.is_dir() or RunDir(path).started:
        yield _outcome(RunDir.open(path), at)
        return
    found = False
    problem: UserError = RunDirError(
        f"{path}: not a run directory, and there is no finished run below it"
    )
    for run in runs_below(path):
        if not run.finished:
            logger.warning("%s is left out: the run has not finished", run.path)
            continue
        try:
            yield _outcome(RunDir.open(run.path), at)
        except UserError as error:
            logger.warning("%s is left out: %s", run.path, error)
            problem = error
        else:
            found = True
    if not found:
        raise problem


def _outcome(run: RunDir, at: str) -> Outcome:
    result, config = run.read_result(), run.read_config()
    environment = run.read_json(run.environment) if run.environment.is_file() else {}
    task = run.read_json(run.task) if run.task.is_file() else {}
    entry = result[at]
    value = entry.get("value") if isinstance(entry, dict) else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RunDirError(f"{run.result} is corrupt: {at} has no value")
    return Outcome(
        run=run,
        task=str(result.get("task", config.task)),
        config=config,
        score=value if smaller_is_better(result.get("selecting")) else 100 * value,
        result=result,
        kind=task.get("objective") or None,
        weights=str(nested(environment, ("identity", "weights")) or ""),
    )


def tasks_of(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """List tasks and other data sets by their columns' names, the paper's first, in its order."""
    found = dict.fromkeys(outcome.column for outcome in outcomes)
    known = GROUPS["all"]
    return (*(t for t in known if t in found), *(t for t in found if t not in known))


def nested(result: Any, names: Sequence[str]) -> Any:
    """Return a value in nested JSON objects, by the names that lead to it; None: it is missing."""
    for name in names:
        result = result.get(name) if isinstance(result, Mapping) else None
    return result


def grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], Any]) -> dict[Any, list[Outcome]]:
    """Group outcomes by key; keys and outcomes keep their order."""
    found: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome), []).append(outcome)
    return found
