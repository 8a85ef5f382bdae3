"""Predictions and their metrics at the posterior mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli import posterior
from bayeslora_cli.batches import TokenisedSplit, evaluation_order, tokenise
from bayeslora_cli.config import RunConfig
from bayeslora_cli.data import load_task
from bayeslora_cli.device import pick_device, set_precision
from bayeslora_cli.errors import DataError, NonFiniteError
from bayeslora_cli.glue import TASKS
from bayeslora_cli.metrics import task_metrics
from bayeslora_cli.model import Labels, Network, build_network, load_tokenizer
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
    device: str = "auto",
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Read a finished run back and evaluate it at the posterior mean.

    Args:
        split: train, validation or test; MNLI's validation and test are two splits each.
        data: directory of the data; None: the one that the run was trained on.
    Returns:
        run, task, split and `metrics` by split.
    Raises:
        UserError: no run, data that is missing or has no labels, another model.
    """
    run = RunDir.open(path)
    config = run.read_config()
    task = TASKS[config.task]
    labels = Labels(classes=task.classes)
    names = split_names(task, split)
    source = data if data is not None else config.data
    examples = load_task(config.task, None if source is None else Path(source), names)
    for name, found in examples.items():
        if found.labels is None:
            raise DataError(f"--split {split}: {name} of {config.task} has no labels to score")

    network, tokenizer = load_run(run, config, labels, device)
    splits = {
        name: tokenise(found, tokenizer, config.max_length, regression=task.regression)
        for name, found in examples.items()
    }
    metrics = evaluate_splits(network, task, splits, batch_size or config.eval_batch_size)
    return {"run": str(path), "task": config.task, "split": split, "metrics": metrics}


def split_names(task: Task, split: str) -> tuple[str, ...]:
    """What `--split` names: MNLI's validation and test are two splits each.

    Raises:
        DataError: no such split.
    """
    groups = {
        "train": ("train",),
        "validation": task.validation_splits,
        "test": task.test_splits,
    }
    if split not in groups:
        raise DataError(f"--split {split}: choose one of {', '.join(groups)}")
    return groups[split]


def load_run(run: RunDir, config: RunConfig, labels: Labels, device: str) -> tuple[Network, Any]:
    """The network of a finished run at its posterior mean, and its tokenizer.

    Raises:
        UserError: as `model.build_network` and `posterior.load` do.
    """
    set_precision(config.precision)
    tokenizer = load_tokenizer(config.model)
    network = build_network(config, labels, tokenizer, posterior=False, device=pick_device(device))
    posterior.load(run.posterior, network).apply(network.bank)
    return network, tokenizer
