"""`Evaluation`: the result of an evaluation, and its metrics by split and by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.evaluation.forward_passes import Metrics, describe
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.request import OUTSIDE, EvaluationRequest
from bayeslora_cli.tasks.calibration import auroc, reliability_bins
from bayeslora_cli.tasks.task import Examples


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
    examples: Mapping[str, Examples] = field(default_factory=dict)
    """By split, the rows as text."""

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
        base = self.facts.get("base_precision")
        on = "" if base is None else f", frozen weights in {base}"
        lines = [f"{self.facts['task']} {self.facts['split']}, {self.facts['run']}{on}"]
        lines += [f"at the mean: {describe(self.metrics)}"] if self.metrics else []
        if self.sampled:
            lines.append(f"over {self.facts['samples']} samples: {describe(self.sampled)}")
        return "\n".join(lines)


def scores(
    asked: EvaluationRequest,
    rows: Mapping[str, TokenisedSplit],
    predictives: Mapping[str, Mapping[str, Predictive]],
) -> dict[str, Any]:
    """Compute metrics, reliability and AUROCs as `evaluate_run` returns them."""
    result: dict[str, Any] = {}
    for at, by_split in predictives.items():
        inside = {name: found for name, found in by_split.items() if name != OUTSIDE}
        labelled = {n: (p, y) for n, p in inside.items() if (y := rows[n].labels) is not None}
        result["metrics" if at == "mean" else at] = {
            name: predictive.metrics(asked.task.metrics, labels)
            for name, (predictive, labels) in labelled.items()
        }
        for name, (predictive, labels) in labelled.items():
            if details := predictive.details(labels):
                result.setdefault("details", {}).setdefault(at, {})[name] = details
        if asked.reliability:
            result.setdefault("reliability", {})[at] = {
                name: reliability_bins(*predictive.objective.answers(predictive.values, labels))
                for name, (predictive, labels) in labelled.items()
            }
        if OUTSIDE in by_split:
            outside = {"source": asked.outside, "rows": len(by_split[OUTSIDE].values)}
            result.setdefault("ood", outside)[at] = {
                name: _aurocs(predictive, by_split[OUTSIDE], sampled=at == "sampled")
                for name, predictive in inside.items()
            }
    return result


def scores_by_group(
    asked: EvaluationRequest,
    examples: Mapping[str, Examples],
    rows: Mapping[str, TokenisedSplit],
    predictives: Mapping[str, Mapping[str, Predictive]],
) -> dict[str, Any]:
    """Compute metrics by group, as `groups` of `evaluate_run` has them; {} without groups."""
    result: dict[str, Any] = {}
    for at, by_split in predictives.items():
        for split, predictive in by_split.items():
            groups, labels = examples[split].groups, rows[split].labels
            if groups is None or labels is None or split == OUTSIDE:
                continue
            result.setdefault("groups", {}).setdefault(at, {})[split] = {
                name: {
                    "rows": len(places),
                    **predictive.metrics(asked.task.metrics, labels[places], places),
                }
                for name, places in _members(groups).items()
            }
    return result


def _members(groups: Sequence[str]) -> dict[str, Tensor]:
    """Return the rows of each group, (rows,) int64, wider groups before what they hold."""
    found: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        parts = group.split("/")
        for depth in range(len(parts)):
            found.setdefault("/".join(parts[: depth + 1]), []).append(row)
    return {name: torch.tensor(found[name]) for name in sorted(found, key=lambda n: n.split("/"))}


def _aurocs(inside: Predictive, outside: Predictive, *, sampled: bool) -> dict[str, float]:
    """Return for each kind of uncertainty the AUROC of rows from outside against rows inside."""
    others = outside.uncertainty(sampled=sampled)
    return {
        kind: auroc(values, others[kind])
        for kind, values in inside.uncertainty(sampled=sampled).items()
    }
