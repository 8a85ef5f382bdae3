"""Cuts a finished run to fewer triplets by each criterion, without training, and evaluates it.

The criteria are those of the package at the run's posterior, beside the largest singular values of
the products (`methods.cutting`); `sensitivity` takes gradients of training batches at the mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayeslora_cli as bl
from bayeslora_cli.bayes.criteria import ElementStatistics, load_criterion
from bayeslora_cli.config.catalogue import CRITERIA
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.evaluation.cutting.gradients import BATCHES, averages, gradients
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.methods import cutting
from bayeslora_cli.methods.adalora.rank_allocator import largest
from bayeslora_cli.methods.cutting import SINGULAR_VALUES, Cut, GradientAverages
from bayeslora_cli.methods.network import Network
from bayeslora_cli.tasks.rank_correlation import spearman
from bayeslora_cli.tasks.sources.loading import load_examples

RANKS = (2.0, 1.5, 1.0, 0.5, 0.25)
"""Mean ranks of a matrix to cut to, of those below the run's own."""
BATCH = 512
"""Rows in a forward pass of an evaluation."""


class CutRun:
    """A run in memory whose triplets can be left out."""

    def __init__(self, run: bl.Run, data: Path) -> None:
        """`data`: GLUE's folders with the dev files."""
        self.run = run
        self.config, self.task = replace(run.config, data=str(data)), run.task
        self.network, tokenizer, self.posterior = run.load()
        own = load_examples(run.config, ("train",), task=self.task)[1]
        dev = load_examples(self.config, self.task.validation_splits, task=self.task)[1]
        rows = {
            name: tokenise(found, tokenizer, self.config.max_length, self.network.objective,
                           packed=self.network.packed)
            for name, found in (own | dev).items()
        }  # fmt: skip
        device = self.network.bank.theta.device
        self.training, self.rows = rows.pop("train"), rows
        self.batches = {name: Batches(split, BATCH, device) for name, split in self.rows.items()}

    def labels(self, split: str) -> Tensor:
        """Return the labels of a dev split."""
        found = self.batches[split].labels
        assert found is not None
        return found

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the dev splits' metrics at the bank's present mean and mask."""
        found = predict_at_mean(self.network, self.batches)
        return {
            name: predictive.metrics(self.task.metrics, self.labels(name))
            for name, predictive in found.items()
        }

    def pace(self, samples: int | None) -> dict[str, float]:
        """Return the seconds of predicting the dev rows, at the mean and over samples."""
        began = time.perf_counter()
        predict_at_mean(self.network, self.batches)  # what it predicts is on the host
        found = {"mean": time.perf_counter() - began}
        if samples is not None:
            began = time.perf_counter()
            predict_over_samples(self.network, self.posterior, self.batches, Sampling(samples))
            found["sampled"] = time.perf_counter() - began
        return found

    def scores(self, batches: int) -> tuple[dict[str, Tensor], float | None]:
        """Return the triplets' scores (n, r) by each criterion that the run has; and Spearman's
        correlation of 1/sigma^2 with the mean squared gradient over A's and B's kept elements, None
        without sigma."""
        bank = self.network.bank
        sigma = getattr(self.posterior, "sigma", None)
        observed, squared = _gradients(self.network, self.training, self.config.batch_size, batches)
        statistics = ElementStatistics(
            mean=bank.adapters(self.posterior.mean),
            sigma=None if sigma is None else bank.adapters(sigma),
            sensitivity=observed.sensitivity,
            uncertainty=observed.uncertainty,
        )
        names = [
            n for n, entry in CRITERIA.items() if sigma is not None or not entry.needs_posterior
        ]
        # sigma of a pruned triplet is not kept: its scores, which count for nothing, are 0
        found = {
            name: bank.triplet_scores(load_criterion(name).score(statistics)).nan_to_num(0, 0, 0)
            for name in names
        }
        if sigma is None:
            return found, None
        vectors = slice(bank.singular_values(sigma).numel(), bank.adapter_end)
        kept = sigma[vectors] > 0
        precision, gradient = sigma[vectors][kept].pow(-2), squared[vectors][kept]
        return found, _correlation(precision, gradient)


def _gradients(
    network: Network, split: Any, size: int, batches: int
) -> tuple[GradientAverages, Tensor]:
    """Return means over training batches of I = |theta g| and |I - mean I|; and of g^2, (N,)."""
    bank = network.bank
    found, squared = [], torch.zeros_like(bank.theta)
    for gradient in gradients(network, split, size, batches):
        found.append(bank.adapters(bank.mean * gradient).abs())
        squared += gradient.square() / batches
    return averages(found), squared


def _correlation(a: Tensor, b: Tensor) -> float | None:
    return spearman(a.cpu().double().numpy(), b.cpu().double().numpy())


def _agreement(scores: Mapping[str, Tensor], kept: Tensor) -> dict[str, dict[str, float | None]]:
    """Return, for each pair of criteria, the rank correlation of the kept triplets' scores, and
    the share that the better halves by both have in common (by chance a half)."""
    half = int(kept.sum()) // 2
    better = {name: largest(s.masked_fill(~kept, -torch.inf), half) for name, s in scores.items()}
    return {
        "spearman": {
            f"{a}, {b}": _correlation(scores[a][kept], scores[b][kept])
            for a, b in combinations(scores, 2)
        },
        "halves_in_common": {
            f"{a}, {b}": float((better[a] * better[b]).sum()) / half
            for a, b in combinations(scores, 2)
        },
    }


def cut(held: CutRun, batches: int = BATCHES) -> Iterator[Mapping[str, Any]]:
    """Yield the rank correlations between criteria, and the metrics at each kept rank.

    Args:
        batches: training batches over which gradients are averaged.
    """
    bank, posterior = held.network.bank, held.posterior
    whole = Cut(mean=posterior.mean.clone(), mask=posterior.mask.clone())
    kept, n = int(whole.mask.sum()), len(whole.mask)
    scores, learnt = held.scores(batches) if bank.has_singular_values else ({}, None)
    chosen = whole.mask.bool()
    about = {"precision_and_squared_gradient": learnt}
    yield {"kind": "agreement", **_agreement(scores, chosen), **about}
    for rank in (rank for rank in RANKS if round(rank * n) < kept):
        cuts = {
            name: Cut(mean=whole.mean, mask=largest(own.masked_fill(~chosen, -torch.inf),
                                                    round(rank * n)))
            for name, own in scores.items()
        }  # fmt: skip
        cuts[SINGULAR_VALUES] = cutting.cut(
            held.run.directory, held.config, held.network, posterior, rank, SINGULAR_VALUES
        )
        for name, found in cuts.items():
            found.apply(held.network)
            yield {"kind": "cut", "by": name, "rank": rank, "metrics": held.evaluate()}
        whole.apply(held.network)
    yield {"kind": "cut", "by": "none", "rank": kept / n, "metrics": held.evaluate()}
