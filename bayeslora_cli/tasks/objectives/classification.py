"""Classification, one class of several: cross entropy, accuracy, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.calibration import ECE_BINS, TINY, brier, ece, nll, surprise
from bayeslora_cli.tasks.class_balance import class_weights
from bayeslora_cli.tasks.metrics import class_scores, confusions, metrics_by_name
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.sources.label_column import LabelColumn, number_in, spelling
from bayeslora_cli.tasks.sources.label_lists import SEPARATORS
from bayeslora_cli.tasks.sources.tables.table import shown

_FEW = 20  # with fewer rows, a new class in every other row may be chance


class Classification(Objective):
    """Labels are class indices (n,) int64; predictions are probabilities (n, classes)."""

    table_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    table_selecting = "accuracy"
    selectable: ClassVar[tuple[str, ...]] = (
        "accuracy", "macro_f1", "weighted_f1", "f1", "matthews", "auroc", "nll", "ece", "brier",
    )  # fmt: skip
    problem_type = "single_label_classification"
    has_confidence = True
    weighs_classes = True
    metric_facts: ClassVar[Mapping[str, Any]] = {"ece_bins": ECE_BINS}

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim text, whole numbers, true and false, and any column whose classes have names."""
        kinds = column.kinds()
        return len(kinds) == 1 and None not in kinds and not column.has_fractions()

    @classmethod
    def doubt(cls, column: LabelColumn) -> str | None:
        """Warn of classes that look like lists of other classes."""
        found = {value for value in column.numbers() if isinstance(value, str)}
        for separator in SEPARATORS:
            lists = [value for value in found if separator in value]
            parts = Counter(
                p for value in found for p in {part.strip() for part in value.split(separator)}
            )
            often = [part for part, labels in parts.items() if labels > 1]
            if lists and 2 * len(often) >= len(parts):
                return (
                    f"labels such as {min(lists)!r} are taken for one class each, {len(found)} "
                    f"classes in all; as lists separated by {separator!r} they would name "
                    f"{len(parts)} classes, but a row has one class here; --task-type multi-label "
                    "reads lists"
                )
        return None

    @classmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return the classes: text by code points, numbers by size, named ones as the set does."""
        if column.class_names is not None:
            return column.class_names
        found = set(column.numbers())
        rows = len(column.values)
        if rows >= _FEW and len(found) > rows / 2:
            raise DataError(
                f"{column.title}: found {len(found)} different labels in {rows} rows of the "
                f"column {column.name!r}, which does not look like a label; name another by "
                "--label-column, or write scores for regression with a decimal point"
            )
        return tuple(spelling(value) for value in sorted(found))

    def parse(self, column: LabelColumn) -> list[Any]:
        """Return class indices. An integer class is matched by its decimal spelling, so that one
        table of a task may hold numbers and another text."""
        index_of = {name: index for index, name in enumerate(self.classes)}
        # "01", " 1" and "1.0" mean the class 1, but only if classes are numbers
        numbers = {number_in(name): index for index, name in enumerate(self.classes)}
        spelled_numbers = column.spelled and None not in numbers
        labels = []
        for row, value in enumerate(column.values):
            label = index_of.get(spelling(value))
            if label is None and spelled_numbers:
                label = numbers.get(number_in(value))
            if label is None:
                raise column.unexpected(row, f"one of {shown(self.classes)}")
            labels.append(label)
        return labels

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return class indices (n,) int64."""
        return torch.tensor(labels, dtype=torch.int64)

    def class_weights(self, asked: str, labels: Sequence[Any]) -> tuple[float, ...]:
        """Return each class's weight, whose mean over the training rows is 1."""
        return class_weights(asked, self.classes, labels)

    def loss_weights(self, weights: Tensor, truth: Tensor) -> Tensor:
        """Return the weight of each label's class (n,)."""
        return weights[truth.clamp(min=0)]  # `PADDING` is no index

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross entropy in nats, each row times its weight if it has one.

        The sum is divided by the number of rows, not by the sum of their weights: so it does not
        depend on which rows share a batch, and the weights' mean over all rows is 1.
        """
        if "weights" not in batch:
            return F.cross_entropy(logits, batch["labels"])
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        return (losses * batch["weights"]).mean()

    def expected(self, logits: Tensor) -> Tensor:
        """Return probabilities (n, classes)."""
        return logits.softmax(-1)

    def entropy(self, expected: Tensor) -> Tensor:
        """Return entropies (n,) in nats; 0 log 0 is 0."""
        terms: Tensor = torch.special.entr(expected)
        return terms.sum(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `ece` and `brier`."""
        found = self.training_metrics(names, expected.clamp(min=TINY).log(), labels)
        return {**found, "ece": ece(expected, labels), "brier": brier(expected, labels)}

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the task's metrics and `nll`; `logits` may be log probabilities."""
        probabilities = self.expected(logits.double())
        found = metrics_by_name(names, logits.argmax(-1), labels, probabilities)
        return {**found, "nll": nll(logits, labels)}

    def details(self, expected: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return the scores of each class (`classes`) and the confusions among them."""
        decided = self.decide(expected)
        return {
            "classes": class_scores(decided, labels, self.classes),
            **confusions(decided, labels, self.classes),
        }

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return -log of the probability of each label (n,)."""
        return surprise(shown, self.truth(labels))

    def decide(self, expected: Tensor) -> Tensor:
        """Return the index of the likeliest class (n,)."""
        return expected.argmax(-1)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return the names of the classes."""
        return [self.classes[index] for index in labels.tolist()]
