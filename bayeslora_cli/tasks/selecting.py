"""Which metric selects a run's best evaluation: that of its task, or the user's choice."""

from __future__ import annotations

from dataclasses import replace

from bayeslora_cli.config.catalogue import METRICS
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.task import Task


def selected_by(task: Task, name: str | None) -> Task:
    """Return the task with another selecting metric, which its evaluations then have as well.

    Args:
        name: a key of `METRICS`; None: the task's own.
    Raises:
        ConfigError: predictions of this kind have no such metric.
    """
    if name is None:
        return task
    objective = objective_of(task)
    known = dict.fromkeys((*task.metrics, task.selecting, *objective.selectable))
    here = (None, len(task.classes))
    allowed = [n for n in known if n in METRICS and METRICS[n].classes in here]
    if name not in allowed:
        predicts = objective.entry.predicts
        if METRICS[name].classes is not None and task.classes:
            predicts = f"one of {len(task.classes)} classes"
        one = f"choose one of {', '.join(allowed)}"
        raise ConfigError([f"--select {name}: {task.name} predicts {predicts}; {one}"])
    metrics = task.metrics if name in task.metrics else (*task.metrics, name)
    return replace(task, metrics=metrics, selecting=name)
