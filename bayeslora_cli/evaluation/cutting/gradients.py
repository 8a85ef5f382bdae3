"""Averages of gradients of a finished run, over batches of the rows that it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.data.splits import check_tokens
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import NonFiniteError, UserError
from bayeslora_cli.evaluation.run_loading import of_the_training
from bayeslora_cli.methods.cutting import GradientAverages, needs_gradients
from bayeslora_cli.methods.network import Network
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")
BATCHES = 50
"""Training batches over which gradients are averaged."""
KEPT_BYTES = 2**31
"""Most bytes of the batches' sensitivities, which are kept for their deviations; with adapters of
which fewer than `BATCHES` fit, there are fewer batches."""


def training_rows(
    run: RunDir, config: RunConfig, task: Task, orders: Iterable[str]
) -> Examples | None:
    """Load the rows that a run was trained on, if one of the orders needs gradients of them.

    Args:
        orders: by what the run is cut (`methods.cutting`).
    Raises:
        UserError: they are needed and not there.
    """
    by = next((by for by in orders if needs_gradients(by, config)), None)
    if by is None:
        return None
    try:
        with of_the_training(run, "--train-file", "--data", "--task"):
            return load_examples(config, ("train",), task=task)[1]["train"]
    except UserError as error:
        raise type(error)(f"--by {by}: it needs gradients of training rows: {error}") from error


def gradient_averages(
    network: Network, tokenizer: Any, config: RunConfig, rows: Examples | None
) -> GradientAverages | None:
    """Compute averages of training batches' gradients at the mean, with the run's class weights but
    without dropout.

    Args:
        network: of a finished run, at the posterior's mean.
        rows: what `training_rows` returned; None: nothing needs gradients.
    Raises:
        NonFiniteError: a gradient is not finite.
    """
    if rows is None:
        return None
    split = tokenise(rows, tokenizer, config.max_length, network.objective, packed=network.packed)
    check_tokens(network.module, config.model, [split])
    if config.class_weights is not None:
        weights = network.objective.class_weights(config.class_weights, rows.labels or ())
        split = split.weighed(network.objective, weights)
    size = max(1, config.batch_size // config.grad_accum)
    bank = network.bank
    batches = max(2, min(BATCHES, KEPT_BYTES // bank.adapters(bank.mean).nbytes))
    logger.info("gradients of %d batches of %d rows of the training data", batches, size)
    found = averages(
        [
            bank.adapters(bank.mean * gradient).abs()
            for gradient in gradients(network, split, size, batches)
        ]
    )
    if not found.sensitivity.isfinite().all():
        raise NonFiniteError("a gradient is not finite: the run has diverged")
    return found


def averages(observed: Sequence[Tensor]) -> GradientAverages:
    """Average the sensitivities I (adapters,) of batches, and their deviations."""
    stacked = torch.stack([*observed])
    mean = stacked.mean(0)
    return GradientAverages(sensitivity=mean, uncertainty=(stacked - mean).abs().mean(0))


def gradients(network: Network, split: TokenisedSplit, size: int, batches: int) -> Iterator[Tensor]:
    """Yield the gradient (N,) of each of some batches of `size` rows, always the same ones, at the
    bank's mean; the next one overwrites it."""
    bank, feed = network.bank, Feed(split, network.bank.theta.device)
    generator = torch.Generator().manual_seed(0)
    with bank.at_mean():
        for _ in range(batches):
            batch = feed.batch(torch.randint(len(split), (size,), generator=generator))
            bank.zero_local()
            network.objective.loss(network.logits(batch), batch).backward()  # type: ignore[no-untyped-call]
            bank.collect()
            yield bank.local
    bank.zero_local()
