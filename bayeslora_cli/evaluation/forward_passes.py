"""Runs forward passes over whole splits: at the posterior's mean, and one per sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.counted_rows import check_counts
from bayeslora_cli.data.splits import Batches, check_tokens, truncation_notice
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import NonFiniteError
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.execution.compilation import uncompiled
from bayeslora_cli.execution.cuda_graphs import Inputs, Runner, run_eagerly
from bayeslora_cli.methods.network import Network
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")


def batches_of(
    network: Network,
    tokenizer: Any,
    config: RunConfig,
    examples: Mapping[str, Examples],
    batch_size: int | None,
) -> tuple[dict[str, TokenisedSplit], dict[str, Batches]]:
    """Tokenise rows, and lay them out in batches on the network's device; both by split.

    Args:
        batch_size: examples per forward pass; None: as in training.
    Raises:
        UserError: the network does not take a row, or nothing of a split counts in the loss.
    """
    rows = {
        name: tokenise(
            found, tokenizer, config.max_length, network.objective, packed=network.packed
        )
        for name, found in examples.items()
    }
    for name, split in rows.items():
        check_counts(split, examples[name], config.max_length)
    if notice := truncation_notice(rows, config.max_length):
        logger.warning("%s", notice)
    check_tokens(network.module, config.model, rows.values())
    size = batch_size or config.eval_batch_size
    return rows, {n: Batches(split, size, network.bank.theta.device) for n, split in rows.items()}


def logits_of(
    network: Network,
    batches: Batches,
    check: Callable[[], None] = lambda: None,
    runner: Runner = run_eagerly,
) -> Tensor:
    """Run a split's forward passes at the present parameters; return what `predict` keeps.

    With N processes each runs every N-th batch; the results are summed, so every process gets all.

    Args:
        check: called before each round; if it raises, the passes end without changing anything.
        runner: runs each pass.
    Returns:
        (examples, outputs), fp32, on the CPU; of examples that consist of several rows
        (`Batches.cells`) what `Objective.arranged` makes of them.
    Raises:
        NonFiniteError: a logit is not finite.
    """
    training, objective, cells = network.module.training, network.objective, batches.cells
    network.module.eval()
    try:
        if not len(batches.place):
            batches.place.resize_(batches.most, objective.width(network.module))

        def piece(batch: Inputs) -> None:
            found = objective.predict(network.logits(batch), batch)
            batches.place[: len(found)].copy_(found)

        logits = [batches.place[:0]]
        # weights that are gathered for the first time must be of use in training too
        mode = torch.no_grad() if network.divided else torch.inference_mode()
        with uncompiled(), mode:
            for turn in range(batches.rounds):
                check()
                for batch in batches.inputs[turn : turn + 1]:
                    runner((id(batches), network.branch), piece, batch)
                    logits.append(batches.place[: batches.sizes[turn]].clone())
                if network.divided and turn >= len(batches.inputs):
                    network.logits(batches.spare)
        found = torch.zeros(batches.total, objective.width(network.module))
        found[batches.rows] = torch.cat(logits).cpu()
        # each row is computed by one process, and is zero in all others
        batches.processes.sum_in_place(found)
    finally:
        network.module.train(training)
    if not found.isfinite().all():
        raise NonFiniteError(
            "a prediction is not finite: the run has diverged, train with a lower --lr"
        )
    return found if cells is None else objective.arranged(found, cells)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample the posterior."""

    samples: int
    temperature: float = 1.0
    """Factor of the posterior's variance."""
    seed: int = 0
    """Seed of the noise; it gives the same samples on any device."""


def predict_at_mean(network: Network, splits: Mapping[str, Batches]) -> dict[str, Predictive]:
    """Predict each split at the mean, with the current mask applied."""
    found = {name: Predictive(network.objective) for name in splits}
    with network.bank.at_mean():
        for name, batches in splits.items():
            found[name].add(logits_of(network, batches))
    return found


def draw(at: Posterior, sampling: Sampling) -> Iterator[Tensor]:
    """Yield samples theta (N,) of a posterior, pruned triplets at 0: always the same ones."""
    generator = torch.Generator().manual_seed(sampling.seed)
    for _ in range(sampling.samples):
        yield at.sample(generator, sampling.temperature)


def predict_over_samples(
    network: Network,
    at: Posterior,
    splits: Mapping[str, Batches],
    sampling: Sampling,
    drawn: Iterable[Tensor] | None = None,
) -> dict[str, Predictive]:
    """Predict each split, averaged over samples of the posterior.

    All splits are predicted with the same samples; pruned triplets stay pruned.

    Args:
        at: a posterior of this network with sigma, on its device.
        drawn: what `draw` yields for `at` and `sampling`, if it is kept; None: it is drawn.
    Raises:
        NonFiniteError: a sample's logit is not finite.
    """
    found = {name: Predictive(network.objective) for name in splits}
    for theta in draw(at, sampling) if drawn is None else drawn:
        with network.bank.showing(theta):
            for name, batches in splits.items():
                try:
                    found[name].add(logits_of(network, batches))
                except NonFiniteError as error:
                    raise NonFiniteError(
                        f"--temperature {sampling.temperature}: a sample's prediction is not "
                        "finite; lower it"
                    ) from error
    return found


Metrics = dict[str, dict[str, float]]
"""Split -> metric -> value."""


def evaluate_splits(
    network: Network,
    task: Task,
    splits: Mapping[str, Batches],
    check: Callable[[], None] = lambda: None,
    runner: Runner = run_eagerly,
) -> Metrics:
    """Compute metrics of splits with labels, at the mean, with the current mask applied.

    Args:
        check, runner: passed to `logits_of`.
    """
    with network.bank.at_mean():
        found = {}
        for name, batches in splits.items():
            assert batches.labels is not None
            logits = logits_of(network, batches, check, runner)
            found[name] = network.objective.training_metrics(task.metrics, logits, batches.labels)
        return found


def describe(metrics: Metrics) -> str:
    """Write metrics on one line."""
    return "  ".join(
        f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in metrics.items()
    )
