"""The predictive distribution: predictions averaged over samples of the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_cli.tasks.calibration import OBSERVATION_VARIANCE, brier, ece, gaussian_nll
from bayeslora_cli.tasks.metrics import task_metrics

_TINY = torch.finfo(torch.float64).tiny  # a probability of 0 has no logarithm


class Predictive:
    """Running means over samples of the weights, for n examples, in float64 on the CPU.

    With one sample at the posterior's mean it is the prediction at the mean.
    """

    def __init__(self, rows: int, classes: int | None) -> None:
        """`classes`: None for regression."""
        self.regression = classes is None
        self.samples = 0
        shape = (rows,) if classes is None else (rows, classes)
        self.values = torch.zeros(shape, dtype=torch.float64)
        """(n, classes) mean probabilities; (n,) mean scores."""
        self._within = torch.zeros(rows, dtype=torch.float64)
        """(n,) mean over the samples of the entropy; for regression of the squared distance of the
        scores from their mean."""

    def add(self, logits: Tensor) -> None:
        """Take the logits (n, classes) or scores (n, 1) of one more sample."""
        self.samples += 1
        if self.regression:
            scores = logits.double().squeeze(-1)
            # Welford's update, Technometrics 4, 1962
            before = scores - self.values
            self.values += before / self.samples
            within = before * (scores - self.values)
        else:
            probabilities = logits.double().softmax(-1)
            self.values += (probabilities - self.values) / self.samples
            within = _entropy(probabilities)
        self._within += (within - self._within) / self.samples

    def uncertainty(self, *, sampled: bool) -> dict[str, Tensor]:
        """What is not known of each example, by name, each (n,).

        For classes, in nats: `entropy` of the mean probabilities, and `mutual_information` of
        label and weights, that entropy less the mean of the samples' own. For regression, in
        squared units of the score: `variance` of the samples' scores, the posterior's as S samples
        estimate it (over S - 1; 0 for one sample), without the observation noise.

        Args:
            sampled: whether the samples are such; else `entropy` is all there is.
        """
        if self.regression:
            return {"variance": self._variance()} if sampled else {}
        entropy = _entropy(self.values)
        if not sampled:
            return {"entropy": entropy}
        # a mean's entropy is never below the entropies' mean, but for rounding
        return {"entropy": entropy, "mutual_information": (entropy - self._within).clamp(min=0)}

    def _variance(self) -> Tensor:
        """(n,) unbiased variance of the samples' scores."""
        return self._within * (self.samples / max(1, self.samples - 1))

    def metrics(self, names: Sequence[str], labels: Tensor) -> dict[str, float]:
        """A task's metrics, `nll`, and for classes `ece` and `brier`.

        A score's likelihood is the Gaussian of the predictive mean and variance, which is the
        samples' variance and the observation noise's, `metrics.OBSERVATION_VARIANCE`.

        Args:
            names: keys of `METRICS`.
            labels: (n,) class indices, or scores.
        """
        if self.regression:
            found = task_metrics(names, self.values, labels, regression=True)
            variance = self._variance() + OBSERVATION_VARIANCE
            return {**found, "nll": gaussian_nll(self.values, labels, variance)}
        logits = self.values.clamp(min=_TINY).log()
        found = task_metrics(names, logits, labels, regression=False)
        return {**found, "ece": ece(self.values, labels), "brier": brier(self.values, labels)}


def _entropy(probabilities: Tensor) -> Tensor:
    """(n, classes) -> (n,), in nats; 0 log 0 is 0."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)
