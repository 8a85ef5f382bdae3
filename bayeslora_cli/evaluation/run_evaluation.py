"""Predictions and their metrics, at the posterior mean and over samples of the posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenization import TokenisedSplit, tokenise
from bayeslora_cli.errors import DataError, RunDirError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling, predict_at_mean, predict_over_samples
from bayeslora_cli.evaluation.prediction_files import (
    Predicted,
    check_path,
    write_predictions,
    write_submission,
)
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.run_loading import load_run, of_the_training, split_names
from bayeslora_cli.models.backbones.loading import Labels
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.calibration import ECE_BINS, OBSERVATION_VARIANCE, auroc, reliability_bins
from bayeslora_cli.tasks.sources.comparison_rows import check_data_is_read, load_file, load_outside
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Task

_OUTSIDE = "--ood"  # no name of a split


def evaluate_run(
    path: Path,
    *,
    split: str | None = None,
    data: str | None = None,
    file: str | None = None,
    sampling: Sampling | None = None,
    ood: str | None = None,
    reliability: bool = False,
    predictions: Path | None = None,
    submission: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Read a finished run back and evaluate it, at its posterior mean and over samples.

    Args:
        split: train, validation (None), test or ood; MNLI's validation and test are two splits
            each.
        data: directory of the data; None: the one that the run was trained on.
        file: rows of one's own instead of a split, with the columns of the run's task; labels are
            not needed for predictions.
        sampling: None: the mean alone.
        ood: rows to tell from the split's by their uncertainty (`other_rows.load_outside`); None:
            with samples those of the task's own split, if it has one.
        reliability: whether to count the bins of a reliability diagram.
        predictions: where to write a row an example (`predictions.write_predictions`): with
            samples what they average to, else what the mean predicts.
        submission: directory for GLUE's own format (`predictions.write_submission`), likewise.
        trust_remote_code: run Python code that comes with the model.
    Returns:
        run, task, split, the `precision` it is computed in, and `metrics` by split at the mean, of
        those with labels; for classes `ece_bins`, for scores the `observation_variance` of their
        nll. With samples `sampled`, metrics by split over the samples; `samples`,
        `temperature`, `seed`; `posterior`, as training has summed it up. With rows out of the
        distribution `ood`: `source`, `rows`, and `mean` and `sampled`: by split, by kind of
        uncertainty, the AUROC. With `reliability` that: `mean` and `sampled`, bins by split.
    Raises:
        UserError: no run, options without effect, data that is missing or has no labels, another
            model, no posterior.
    """
    if file is not None and split is not None:
        raise UserError(f"--split {split}: --eval-file {file} is read instead; leave one out")
    split = split or "validation"
    if predictions is not None:
        check_path(predictions)
    run = RunDir.open(path)
    config, task = run.read_config(trust_remote_code=trust_remote_code), run.read_task()
    if data is not None:
        if ood not in TASKS:  # whose rows are there
            check_data_is_read(config, data, file)
        config = replace(config, data=data)
    _check_uncertainty(config, task, sampling, ood, reliability=reliability)
    glue = TASKS.get(task.name)
    if file is None:
        with of_the_training(
            run, "--train-file", "--eval-file", *(["--data"] if data is None else [])
        ):
            examples = load_examples(config, split_names(task, split), task=task)[1]
    else:
        examples = load_file(file, task)
    if submission is not None and (glue is None or not examples.keys() <= set(task.test_splits)):
        raise DataError(f"--submission {submission}: GLUE's tasks alone have it, with --split test")
    unlabelled_will_do = (predictions or submission or ood) is not None
    for name, found in examples.items():
        beginning = f"{name} of {task.name} has no labels"
        if found.labels is None and reliability:
            raise DataError(f"--reliability: {beginning} to be right or wrong about; leave it out")
        if found.labels is None and not unlabelled_will_do:
            raise DataError(
                f"{beginning} to score; --predictions FILE writes what the run predicts"
            )
    if ood is None and sampling is not None and file is None and split != "ood":
        ood = next(iter(task.ood_splits), None)
    if ood is not None:
        examples = {**examples, _OUTSIDE: load_outside(ood, config, task, own_rows=file is None)}

    network, tokenizer, kept = load_run(run, config, Labels(classes=task.classes), device)
    rows = {
        name: tokenise(found, tokenizer, config.max_length, regression=task.regression)
        for name, found in examples.items()
    }
    size = batch_size or config.eval_batch_size
    batches = {name: Batches(r, size, network.bank.theta.device) for name, r in rows.items()}
    found_at = {"mean": predict_at_mean(network, batches)}
    if sampling is not None:
        if kept.sigma is None:
            raise RunDirError(f"{run.posterior} is corrupt: it has no sigma to sample with")
        found_at["sampled"] = predict_over_samples(network, kept, batches, sampling)

    result: dict[str, Any] = {
        "run": str(path),
        "task": task.name,
        "split": file or split,
        "precision": config.precision,
    }
    outside = {at: p.pop(_OUTSIDE) for at, p in found_at.items() if ood is not None}
    for at, predictives in found_at.items():
        labelled = {n: (p, y) for n, p in predictives.items() if (y := rows[n].labels) is not None}
        result["metrics" if at == "mean" else at] = {
            name: predictive.metrics(task.metrics, labels)
            for name, (predictive, labels) in labelled.items()
        }
        if reliability:
            result.setdefault("reliability", {})[at] = {
                name: reliability_bins(predictive.values, labels)
                for name, (predictive, labels) in labelled.items()
            }
        if ood is not None:
            result.setdefault("ood", {"source": ood, "rows": len(rows[_OUTSIDE])})[at] = {
                name: _aurocs(predictive, outside[at], sampled=at == "sampled")
                for name, predictive in predictives.items()
            }
    if task.regression:
        result["observation_variance"] = OBSERVATION_VARIANCE
    else:
        result["ece_bins"] = ECE_BINS
    if sampling is not None:
        result |= {**asdict(sampling), "posterior": run.read_result().get("posterior")}
    _write(found_at, rows, task, predictions, submission)
    return result


def _check_uncertainty(
    config: RunConfig, task: Task, sampling: Sampling | None, ood: str | None, *, reliability: bool
) -> None:
    """Whether the run has what is asked for, before anything is loaded."""
    if sampling is not None and not OPTIMIZERS[config.optimizer].posterior:
        raise UserError(
            f"--samples {sampling.samples}: the run was trained with {config.optimizer}, which "
            "finds a point and no posterior to sample; train with --optimizer ivon"
        )
    if sampling is not None and not 0 <= sampling.temperature < math.inf:
        raise UserError(f"--temperature {sampling.temperature}: give a number of 0 or more")
    if task.regression and reliability:
        raise UserError(f"--reliability: {task.name} predicts a score, which has no confidence")
    if task.regression and ood is not None and (sampling is None or sampling.samples < 2):
        raise UserError(
            f"--ood {ood}: a score's uncertainty is the samples' variance; give --samples 2 or more"
        )


def _aurocs(inside: Predictive, outside: Predictive, *, sampled: bool) -> dict[str, float]:
    """How well each kind of uncertainty tells the rows from outside from those inside."""
    others = outside.uncertainty(sampled=sampled)
    return {
        kind: auroc(values, others[kind])
        for kind, values in inside.uncertainty(sampled=sampled).items()
    }


def _write(
    found_at: Mapping[str, Mapping[str, Predictive]],
    rows: Mapping[str, TokenisedSplit],
    task: Task,
    predictions: Path | None,
    submission: Path | None,
) -> None:
    """Write what is predicted, over samples where there are any, to the files asked for."""
    sampled = "sampled" in found_at
    predicted = {
        name: Predicted(
            values=found.values.float(),
            labels=rows[name].labels,
            extra={k: v.float() for k, v in found.uncertainty(sampled=sampled).items()},
        )
        for name, found in found_at["sampled" if sampled else "mean"].items()
    }
    if predictions is not None:
        write_predictions(predictions, task, predicted)
    if submission is not None:
        write_submission(submission, TASKS[task.name], predicted)
