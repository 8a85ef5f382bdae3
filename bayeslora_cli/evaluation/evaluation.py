"""`Evaluation`: the result of evaluating a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayeslora_cli.evaluation.forward_passes import Metrics, describe
from bayeslora_cli.evaluation.predictive import Predictive


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Evaluation:
    """The result of `evaluate_run`: metrics, and predictions of every row.

    Splits are named as the task names them: `validation`, or the two of MNLI.
    """

    facts: Mapping[str, Any]
    """The JSON object that `bayeslora eval --json` prints; see `evaluate_run`."""
    labels: Mapping[str, Tensor]
    """For each split with labels, the labels: (n,) class indices or scores, by the objective."""
    at_mean: Mapping[str, Predictive]
    """By split, the predictions at the posterior's mean."""
    over_samples: Mapping[str, Predictive] | None
    """By split, the predictions averaged over samples; None: there are no samples."""

    @property
    def metrics(self) -> Metrics:
        """Split -> metric -> value, at the posterior's mean."""
        found: Metrics = self.facts["metrics"]
        return found

    @property
    def sampled(self) -> Metrics | None:
        """Split -> metric -> value, over the samples; None without samples."""
        return self.facts.get("sampled")

    @property
    def ood(self) -> dict[str, Any] | None:
        """`source`, `rows`, and the AUROC by split and kind of uncertainty; None: no such rows."""
        return self.facts.get("ood")

    @property
    def predictions(self) -> dict[str, Tensor]:
        """Predictions by split, in float64: class probabilities (n, classes), or scores (n,).

        They are averaged over the samples if there are any, else taken at the mean.
        """
        return {name: found.values for name, found in self._best.items()}

    @property
    def uncertainty(self) -> dict[str, dict[str, Tensor]]:
        """Uncertainty (n,) by split, then by kind; see `Predictive.uncertainty` for the units."""
        sampled = self.over_samples is not None
        return {name: found.uncertainty(sampled=sampled) for name, found in self._best.items()}

    @property
    def _best(self) -> Mapping[str, Predictive]:
        return self.at_mean if self.over_samples is None else self.over_samples

    def to_json(self) -> dict[str, Any]:
        """Return `facts`."""
        return dict(self.facts)

    def __repr__(self) -> str:
        lines = [f"{self.facts['task']} {self.facts['split']}, {self.facts['run']}"]
        lines += [f"at the mean: {describe(self.metrics)}"] if self.metrics else []
        if self.sampled:
            lines.append(f"over {self.facts['samples']} samples: {describe(self.sampled)}")
        return "\n".join(lines)
