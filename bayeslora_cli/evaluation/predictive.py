"""The predictive distribution: predictions averaged over samples of the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.tasks.objectives.objective import Objective


class Predictive:
    """Running means over samples of the weights, for n examples, in float64 on the CPU.

    With one sample, taken at the posterior's mean, it is the prediction at the mean.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.samples = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        """Mean of `Objective.expected`."""
        self._within = torch.zeros((), dtype=torch.float64)
        """(n,): for probabilities, the samples' mean entropy; for scores, the mean squared distance
        of `Objective.decide` from that of the mean, summed over the numbers of a vector."""

    @property
    def values(self) -> Tensor:
        """The predictions: (n, classes) probabilities, or (n,) scores."""
        return self.objective.shown(self._mean)

    def add(self, logits: Tensor) -> None:
        """Add the logits (n, outputs) of one more sample."""
        self.samples += 1
        found = self.objective.expected(logits.double())
        # Welford's update, Technometrics 4, 1962
        before = self._mean if self.samples > 1 else torch.zeros_like(found)
        self._mean = before + (found - before) / self.samples
        if self.objective.probabilistic:
            within = self.objective.entropy(found)
        else:
            score, old, new = map(self.objective.decide, (found, before, self._mean))
            within = (score - old) * (score - new)
            within = within.flatten(1).sum(1) if within.ndim > 1 else within
        self._within = self._within + (within - self._within) / self.samples

    def uncertainty(self, *, sampled: bool) -> dict[str, Tensor]:
        """Return measures of each example's uncertainty, by name, each (n,).

        For probabilities, in nats: `entropy` of their mean, and `mutual_information` of label and
        weights, which is that entropy minus the mean entropy of the samples. For scores, in their
        squared units: `variance` over the S samples (divided by S - 1; 0 for one sample), an
        estimate of the posterior's, without the observation noise.

        Args:
            sampled: whether samples were drawn; otherwise only `entropy` is returned.
        """
        if not self.objective.probabilistic:
            return {"variance": self._variance()} if sampled else {}
        entropy = self.objective.entropy(self._mean)
        if not sampled:
            return {"entropy": entropy}
        # the entropy of a mean is never below the mean entropy, except by rounding
        return {"entropy": entropy, "mutual_information": (entropy - self._within).clamp(min=0)}

    def measures(self, *, sampled: bool) -> dict[str, Tensor]:
        """Return what files of predictions have beside them, by name, each (n,): the kind's own
        measures, and those of `uncertainty`."""
        return {**self.objective.measures(self._mean), **self.uncertainty(sampled=sampled)}

    def _variance(self) -> Tensor:
        """Return the unbiased variance of the samples' scores (n,)."""
        return self._within * (self.samples / max(1, self.samples - 1))

    def metrics(
        self, names: Sequence[str], labels: Tensor, rows: Tensor | None = None
    ) -> dict[str, float]:
        """Return the metrics of `Objective.metrics`.

        Args:
            names: the task's metrics.
            labels: (n, ...).
            rows: (n,) the examples that count, to which `labels` belong; None: all.
        """
        chosen = slice(None) if rows is None else rows
        variance = None if self.objective.probabilistic else self._variance()[chosen]
        return self.objective.metrics(names, self._mean[chosen], labels, variance)

    def details(self, labels: Tensor) -> dict[str, Any]:
        """Return what `Objective.details` does, of all examples."""
        return self.objective.details(self._mean, labels)
