"""The predictive distribution: predictions averaged over samples of the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_cli.tasks.objectives.objective import Objective


class Predictive:
    """Running means over samples of the weights, for n examples, in float64 on the CPU.

    With one sample at the posterior's mean it is the prediction at the mean.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.samples = 0
        self.values = torch.zeros((), dtype=torch.float64)
        """Mean of `Objective.expected`: (n, classes) probabilities, or (n,) scores."""
        self._within = torch.zeros((), dtype=torch.float64)
        """(n,) mean over the samples of the entropy; of scores, of the squared distance from their
        mean."""

    def add(self, logits: Tensor) -> None:
        """Take the logits (n, outputs) of one more sample."""
        self.samples += 1
        found = self.objective.expected(logits.double())
        # Welford's update, Technometrics 4, 1962
        before = found - self.values
        self.values = self.values + before / self.samples
        if self.objective.probabilistic:
            within = self.objective.entropy(found)
        else:
            within = before * (found - self.values)
        self._within = self._within + (within - self._within) / self.samples

    def uncertainty(self, *, sampled: bool) -> dict[str, Tensor]:
        """What is not known of each example, by name, each (n,).

        For probabilities, in nats: `entropy` of their mean, and `mutual_information` of label and
        weights, that entropy less the mean of the samples' own. For scores, in their squared
        units: `variance` over the samples, the posterior's as S samples estimate it (over S - 1; 0
        for one sample), without the observation noise.

        Args:
            sampled: whether the samples are such; otherwise `entropy` is all there is.
        """
        if not self.objective.probabilistic:
            return {"variance": self._variance()} if sampled else {}
        entropy = self.objective.entropy(self.values)
        if not sampled:
            return {"entropy": entropy}
        # a mean's entropy is never below the entropies' mean, but for rounding
        return {"entropy": entropy, "mutual_information": (entropy - self._within).clamp(min=0)}

    def _variance(self) -> Tensor:
        """(n,) unbiased variance of the samples' scores."""
        return self._within * (self.samples / max(1, self.samples - 1))

    def metrics(self, names: Sequence[str], labels: Tensor) -> dict[str, float]:
        """As `Objective.metrics` has them.

        Args:
            names: the task's metrics.
            labels: (n, ...).
        """
        variance = None if self.objective.probabilistic else self._variance()
        return self.objective.metrics(names, self.values, labels, variance)
