"""Predictions and their metrics at the posterior mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli import posterior
from bayeslora_cli.backbone import Labels, load_tokenizer
from bayeslora_cli.batches import TokenisedSplit, evaluation_order, tokenise
from bayeslora_cli.config import RunConfig
from bayeslora_cli.data import load_examples, load_file
from bayeslora_cli.device import pick_device, set_precision
from bayeslora_cli.errors import DataError, NonFiniteError
from bayeslora_cli.glue import TASKS
from bayeslora_cli.metrics import task_metrics
from bayeslora_cli.model import Network, build_network
from bayeslora_cli.predictions import (
    Predicted,
    check_path,
    write_predictions,
    write_submission,
)
from bayeslora_cli.rundir import RunDir
from bayeslora_cli.tasks import Task

Metrics = dict[str, dict[str, float]]
"""Split -> metric -> value."""


@torch.inference_mode()
def predict(network: Network, split: TokenisedSplit, batch_size: int) -> Tensor:
    """Logits of a split at what the modules see now: (examples, outputs), fp32, on the CPU.

    Raises:
        NonFiniteError: a logit that is not finite.
    """
    device = network.bank.theta.device
    training = network.module.training
    network.module.eval()
    try:
        logits = torch.empty(len(split), network.labels.outputs)
        for indices in evaluation_order(split, batch_size):
            batch = {k: v.to(device) for k, v in split.batch(indices).items()}
            logits[indices] = network.logits(batch).cpu()
    finally:
        network.module.train(training)
    if not logits.isfinite().all():
        raise NonFiniteError("a prediction is not finite: the run has diverged, lower --lr")
    return logits


def evaluate_splits(
    network: Network, task: Task, splits: dict[str, TokenisedSplit], batch_size: int
) -> Metrics:
    """Metrics of each split at the mean, with the current mask applied."""
    with network.bank.at_mean():
        found = {}
        for name, split in splits.items():
            assert split.labels is not None
            logits = predict(network, split, batch_size)
            found[name] = task_metrics(
                task.metrics, logits, split.labels, regression=network.labels.regression
            )
        return found


def evaluate_run(
    path: Path,
    *,
    split: str = "validation",
    data: str | None = None,
    file: str | None = None,
    predictions: Path | None = None,
    submission: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Read a finished run back and evaluate it at the posterior mean.

    Args:
        split: train, validation, test or ood; MNLI's validation and test are two splits each.
        data: directory of the data; None: the one that the run was trained on.
        file: rows of one's own instead of a split, with the columns of the run's task; labels are
            not needed for predictions.
        predictions: where to write a row an example (`predictions.write_predictions`).
        submission: directory for GLUE's own format (`predictions.write_submission`).
    Returns:
        run, task, split and `metrics` by split, those with labels.
    Raises:
        UserError: no run, data that is missing or has no labels, another model.
    """
    if predictions is not None:
        check_path(predictions)
    run = RunDir.open(path)
    config, task = run.read_config(), run.read_task()
    if data is not None:
        config = replace(config, data=data)
    if file is not None:
        examples = load_file(file, task)
    else:
        _, examples = load_examples(config, split_names(task, split), task=task)
    glue = TASKS.get(task.name)
    if submission is not None and (glue is None or not examples.keys() <= set(task.test_splits)):
        raise DataError(f"--submission {submission}: GLUE's tasks alone have it, with --split test")
    for name, found in examples.items():
        if found.labels is None and predictions is None and submission is None:
            raise DataError(
                f"{name} of {task.name} has no labels to score; --predictions FILE writes what the "
                "run predicts"
            )

    network, tokenizer = load_run(run, config, Labels(classes=task.classes), device)
    metrics: Metrics = {}
    predicted: dict[str, Predicted] = {}
    with network.bank.at_mean():
        for name, found in examples.items():
            rows = tokenise(found, tokenizer, config.max_length, regression=task.regression)
            logits = predict(network, rows, batch_size or config.eval_batch_size)
            values = logits.squeeze(-1) if task.regression else logits.softmax(-1)
            predicted[name] = Predicted(values=values, labels=rows.labels)
            if rows.labels is not None:
                metrics[name] = task_metrics(
                    task.metrics, logits, rows.labels, regression=task.regression
                )
    if predictions is not None:
        write_predictions(predictions, task, predicted)
    if submission is not None and glue is not None:
        write_submission(submission, glue, predicted)
    return {
        "run": str(path),
        "task": task.name,
        "split": file if file is not None else split,
        "metrics": metrics,
    }


def split_names(task: Task, split: str) -> tuple[str, ...]:
    """What `--split` names: MNLI's validation and test are two splits each.

    Raises:
        DataError: no such split.
    """
    groups = {
        "train": ("train",),
        "validation": task.validation_splits,
        "test": task.test_splits,
        "ood": task.ood_splits,
    }
    groups = {name: splits for name, splits in groups.items() if splits}
    if split not in groups:
        raise DataError(f"--split {split}: {task.name} has {', '.join(groups)}")
    return groups[split]


def load_run(run: RunDir, config: RunConfig, labels: Labels, device: str) -> tuple[Network, Any]:
    """The network of a finished run at its posterior mean, and its tokenizer.

    Raises:
        UserError: as `model.build_network` and `posterior.load` do.
    """
    set_precision(config.precision)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    network = build_network(config, labels, tokenizer, posterior=False, device=pick_device(device))
    posterior.load(run.posterior, network).apply(network.bank)
    return network, tokenizer


def describe(metrics: Metrics) -> str:
    """Metrics on one line."""
    return "  ".join(
        f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in metrics.items()
    )
