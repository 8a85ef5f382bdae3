"""Regression, the prediction of a score: squared error, correlations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.tasks.calibration import OBSERVATION_VARIANCE, gaussian_nll
from bayeslora_cli.tasks.metrics import metrics_by_name
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers
from bayeslora_cli.tasks.sources.label_column import LabelColumn, finite, number_in

_ERRORS = ("mae", "rmse")


class Regression(Objective):
    """Regression: labels and predictions are scores (n,)."""

    table_metrics = ("pearson", "spearman")
    table_selecting = "pearson_spearman"
    selectable = ("pearson", "spearman", "pearson_spearman", "mae", "rmse", "nll")
    problem_type = "regression"
    probabilistic = False
    error = "absolute error"
    metric_facts: ClassVar[Mapping[str, Any]] = {"observation_variance": OBSERVATION_VARIANCE}

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim numbers, if one or more are not whole."""
        kinds = column.kinds()
        return len(kinds) == 1 and None not in kinds and column.has_fractions()

    @classmethod
    def doubt(cls, column: LabelColumn) -> str | None:
        """Warn of whole numbers with a decimal point: they may be classes that pandas wrote so."""
        found = set(column.numbers())
        if any(value != int(value) for value in found):
            return None
        return (
            f"the labels in the column {column.name!r} are {len(found)} different whole numbers "
            "written with a decimal point, so this is a REGRESSION: scores are predicted, no "
            "classes. --task-type classification makes them classes, --task-type regression says "
            "that they are scores"
        )

    @classmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return (): there are no classes."""
        return ()

    def parse(self, column: LabelColumn) -> list[Any]:
        """Return the labels as finite numbers."""
        labels = []
        for row, value in enumerate(column.values):
            label = finite(number_in(value) if column.spelled else value)
            if label is None:
                raise column.unexpected(row, "a finite number")
            labels.append(label)
        return labels

    @property
    def outputs(self) -> int:
        """One: the score."""
        return 1

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return scores (n,) float32."""
        return torch.tensor(labels, dtype=torch.float32)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(logits.squeeze(-1), batch["labels"])

    def expected(self, logits: Tensor) -> Tensor:
        """Return scores (n,)."""
        return logits.squeeze(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `mae` and `rmse`.

        The likelihood is that of a Gaussian with the predictive mean and the predictive variance:
        the variance over the samples plus that of the observation noise, `OBSERVATION_VARIANCE`.
        """
        found = metrics_by_name(names, expected, labels)
        noise = OBSERVATION_VARIANCE if variance is None else variance + OBSERVATION_VARIANCE
        found["nll"] = gaussian_nll(expected, labels, noise)
        return found | metrics_by_name(_ERRORS, expected, labels)

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the task's metrics and `nll`."""
        found = self.metrics(names, self.expected(logits.double()), labels)
        return {name: found[name] for name in found if name in names or name not in _ERRORS}

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return absolute errors (n,)."""
        return (shown - labels).abs()

    def decide(self, expected: Tensor) -> Tensor:
        """Return the scores."""
        return expected

    def spell(self, labels: Tensor) -> list[Any]:
        """Return numbers with the fewest digits that give the same value back."""
        return shortest_numbers(labels)
