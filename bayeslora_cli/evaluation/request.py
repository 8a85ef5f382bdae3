"""`EvaluationRequest`: a model, the rows it is evaluated on and what is asked about them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bayeslora_cli.config.catalogue import OBJECTIVES, OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.evaluation.run_loading import of_the_training, split_names
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import (
    ChoiceTask,
    choice_task,
    load_to_score,
)
from bayeslora_cli.tasks.sources.comparison_rows import load_file, load_outside
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task, changed_splits

logger = logging.getLogger("bayeslora")
OUTSIDE = "--ood"  # not the name of a split


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """A model and the requested evaluation; the fields are `evaluate_run`'s arguments."""

    name: str
    """The run's directory or the model, as the user named it."""
    run: RunDir | None
    """The run whose model it is; None: a pretrained model without a run."""
    config: RunConfig
    task: Task
    """The task whose rows are read."""
    other: ChoiceTask | None = None
    """That task, if it is not the run's own."""
    shots: int = 0
    split: str | None = None
    data: str | None = None
    file: str | None = None
    sampling: Sampling | None = None
    ood: str | None = None
    reliability: bool = False
    predictions: Path | None = None
    submission: Path | None = None

    @property
    def outside(self) -> str | None:
        """Out-of-distribution rows: those that the user asked for, or with samples those of the
        task's own split; None: there are none."""
        own_split = self.file is None and self.other is None and self.split != "ood"
        if self.ood is None and self.sampling is not None and own_split:
            return next(iter(self.task.ood_splits), None)
        return self.ood


def other_task(
    task: str | None, choices: str | None, shots: int, split: str | None, file: str | None
) -> ChoiceTask | None:
    """Return the task of multiple choice that is read; None: none was named.

    Raises:
        UserError: there is no such task, or options have no effect.
    """
    if file is not None and split is not None:
        raise UserError(f"--split {split}: --eval-file {file} is read instead; leave one out")
    if task is not None:
        return choice_task(task, choices)
    if shots or choices is not None:
        given = f"--shots {shots}" if shots else f"--choices {choices}"
        raise UserError(f"{given}: it is for --task NAME; leave it out")
    return None


def check_kind(name: str, own: Task, other: Task) -> None:
    """Check that a run can be evaluated on another task: both need the same model.

    Args:
        name: the run, for messages.
    Raises:
        UserError: they do not.
    """
    mine, needed = OBJECTIVES[own.objective], OBJECTIVES[other.objective]
    if (mine.auto_class, mine.head) != (needed.auto_class, needed.head):
        raise UserError(
            f"--task {other.name}: {name} predicts {mine.predicts}, and predicting "
            f"{needed.predicts} needs a run of a causal language model"
        )


def check_sampling(config: RunConfig, sampling: Sampling | None) -> None:
    """Check that a run's posterior can be sampled as requested.

    Raises:
        UserError: its optimizer finds no posterior, or a temperature below 0.
    """
    if sampling is None:
        return
    if not OPTIMIZERS[config.optimizer].posterior:
        raise UserError(
            f"--samples {sampling.samples}: the run was trained with {config.optimizer}, which "
            "finds a point and no posterior to sample; train with --optimizer ivon"
        )
    if not 0 <= sampling.temperature < math.inf:
        raise UserError(f"--temperature {sampling.temperature}: give a number of 0 or more")


def check_uncertainty(asked: EvaluationRequest) -> None:
    """Check, before anything is loaded, that the run has what the options ask for."""
    sampling = asked.sampling
    check_sampling(asked.config, sampling)
    objective = objective_of(asked.task)
    predicts = objective.entry.predicts
    if asked.reliability and not objective.has_confidence:
        raise UserError(
            f"--reliability: {asked.task.name} predicts {predicts}, which has no confidence"
        )
    several = sampling is not None and sampling.samples > 1
    if asked.ood is not None and not several and not objective.probabilistic:
        raise UserError(
            f"--ood {asked.ood}: {predicts}'s uncertainty is the samples' variance; give "
            "--samples 2 or more"
        )


def collect(asked: EvaluationRequest) -> dict[str, Examples]:
    """Read the rows by split, as text; out-of-distribution rows under `OUTSIDE`.

    Raises:
        UserError: rows are missing, are other ones than in the training, or lack labels that are
            needed.
    """
    examples = _read_rows(asked)
    _check_labels(asked, examples)
    if asked.outside is None:
        return examples
    outside = load_outside(asked.outside, asked.config, asked.task, own_rows=asked.file is None)
    return {**examples, OUTSIDE: outside}


def _read_rows(asked: EvaluationRequest) -> dict[str, Examples]:
    """Read the rows to evaluate on: of another task, of the run's own splits, or of a file."""
    task, config = asked.task, asked.config
    if asked.other is not None:
        data = asked.data or config.data
        where = None if data is None else Path(data)
        return load_to_score(asked.other, where, asked.split, shots=asked.shots)
    if asked.file is not None:
        return load_file(asked.file, task, config.loss_on)
    assert asked.run is not None
    given = ["--train-file", "--eval-file", *(["--data"] if asked.data is None else [])]
    with of_the_training(asked.run, *given):
        splits = split_names(task, asked.split or "validation")
        examples = load_examples(config, splits, task=task)[1]
    _check_rows(asked, asked.run, examples)
    return examples


def _check_labels(asked: EvaluationRequest, examples: Mapping[str, Examples]) -> None:
    """Refuse rows without labels where they are needed, and submissions of other rows."""
    task = asked.task
    of_tests = task.name in TASKS and examples.keys() <= set(task.test_splits)
    if asked.submission is not None and not of_tests:
        raise DataError(
            f"--submission {asked.submission}: only for GLUE's tasks, with --split test"
        )
    unlabelled_will_do = (asked.predictions or asked.submission or asked.ood) is not None
    for name, found in examples.items():
        beginning = f"{name} of {task.name} has no labels"
        if found.labels is None and asked.reliability:
            raise DataError(f"--reliability: {beginning} to be right or wrong about; leave it out")
        if found.labels is None and not unlabelled_will_do:
            raise DataError(
                f"{beginning} to score; --predictions FILE writes what the run predicts"
            )


def _check_rows(asked: EvaluationRequest, run: RunDir, examples: Mapping[str, Examples]) -> None:
    """Compare the rows of a run's own splits with those that it was trained and measured on.

    Rows that were held out of the training are not compared here: they were found by content.

    Raises:
        DataError: they are others now; where --data names other data, that is only a warning.
    """
    identity = run.read_json(run.environment).get("identity")
    held = asked.task.validation_splits if asked.task.held_out else ()
    others = {name: rows for name, rows in examples.items() if name not in held}
    changed = " and ".join(changed_splits(asked.task, others, identity))
    if not changed:
        return
    what = f"{changed} of {asked.task.name} has other rows or labels than at the training"
    if asked.data is None:
        raise DataError(
            f"{what} of {run.path}; put the old ones back, or name the new ones with --eval-file "
            "FILE or --data DIR"
        )
    logger.warning("--data %s: %s", asked.data, what)
