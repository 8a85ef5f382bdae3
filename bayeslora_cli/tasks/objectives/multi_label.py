"""Multi-label classification, any number of classes per row: a sigmoid and a cross entropy each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks import calibration
from bayeslora_cli.tasks.calibration import ECE_BINS, TINY, ece, to_float64
from bayeslora_cli.tasks.class_balance import presence_weights
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.sources.label_lists import label_lists, names_of, sorted_names
from bayeslora_cli.tasks.sources.tables.table import shown

THRESHOLD = 0.5
"""A class is predicted from this probability on."""
_FEW = 20  # with fewer rows, a new class in every other row may be chance


class MultiLabel(Objective):
    """Labels are 0 or 1 for each class (n, classes); predictions are probabilities of the same
    shape, each of its own: they do not add up to 1."""

    table_metrics = ("micro_f1", "macro_f1", "subset_accuracy", "auroc")
    table_selecting = "micro_f1"
    selectable = (*table_metrics, "nll", "ece", "brier")
    problem_type = "multi_label_classification"
    blank_is_label = True
    weighs_classes = True
    has_confidence = True
    metric_facts: ClassVar[Mapping[str, Any]] = {"ece_bins": ECE_BINS, "threshold": THRESHOLD}

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim lists, in csv and tsv as JSON, and several columns of 0 and 1."""
        return column.several or label_lists(column.values)

    @classmethod
    def takes(cls, column: LabelColumn) -> bool:
        """Take lists, and texts or numbers that name one class or, separated, several."""
        return cls.claims(column) or all(
            isinstance(value, str | int) for value in column.values if value is not None
        )

    @classmethod
    def told(cls, column: LabelColumn) -> str:
        """Say that a row may have several classes."""
        form = "columns of 0 and 1" if column.several else "lists of labels in the column"
        return f"{form} {column.name}: each row has any number of classes"

    @classmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return the classes: text by code points, numbers by size, named ones as the set does."""
        if column.class_names is not None:
            return column.class_names
        names = sorted_names({name for found in names_of(column) for name in found})
        rows = len(column.values)
        if not names:
            raise DataError(f"{column.title}: no row has a label in the column {column.name!r}")
        if rows >= _FEW and len(names) > rows / 2:
            raise DataError(
                f"{column.title}: found {len(names)} different labels in {rows} rows of the column "
                f"{column.name!r}, which does not look like labels; name others by --label-column"
            )
        return names

    def parse(self, column: LabelColumn) -> list[Any]:
        """Return the indices of each row's classes, sorted.

        Raises:
            DataError: a row names another class.
        """
        index_of = {name: index for index, name in enumerate(self.classes)}
        labels = []
        for row, names in enumerate(names_of(column, self.classes)):
            if not index_of.keys() >= set(names):
                raise column.unexpected(row, f"some of {shown(self.classes)}")
            labels.append(tuple(sorted({index_of[name] for name in names})))
        return labels

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return 0 or 1 for each class (n, classes) float32."""
        found = torch.zeros(len(labels), len(self.classes))
        for row, indices in enumerate(labels):
            found[row, list(indices)] = 1
        return found

    def class_weights(self, asked: str, labels: Sequence[Any]) -> tuple[float, ...]:
        """Return each class's weight where a row has it."""
        return presence_weights(asked, self.classes, labels)

    def loss_weights(self, weights: Tensor, truth: Tensor) -> Tensor:
        """Return (n, classes): the weight of a class where the row has it; where the row lacks it
        another, so that the class's mean over all rows is 1."""
        rows, having = len(truth), truth.sum(0)
        others = (rows - having * weights) / (rows - having).clamp(min=1)
        return torch.where(truth > 0, weights, others)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over rows of the binary cross entropies' sum over classes, in nats.

        That is the negative log-likelihood of a row, as IVON needs it; transformers' own loss is
        the mean over classes. With --class-weights each term is multiplied by its weight.
        """
        terms = F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")
        if "weights" in batch:
            terms = terms * batch["weights"]
        return terms.sum(-1).mean()

    def expected(self, logits: Tensor) -> Tensor:
        """Return probabilities (n, classes)."""
        return logits.sigmoid()

    def entropy(self, expected: Tensor) -> Tensor:
        """Return the sum of the classes' entropies (n,), in nats; 0 log 0 is 0."""
        terms: Tensor = torch.special.entr(expected) + torch.special.entr(1 - expected)
        return terms.sum(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `ece` and `brier`.

        `nll` is a sum over the classes, and a mean over the rows. `ece` and `brier` are those of
        all decisions, one for each row and class: is the more likely answer, yes or no, right as
        often as its probability says? What is the mean squared distance of the probability from 0
        or 1, as the label says?
        """
        return self._by_name((*names, "ece", "brier"), to_float64(expected), labels)

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the task's metrics and `nll`."""
        return self._by_name(names, self.expected(to_float64(logits)), labels)

    def _by_name(self, names: Sequence[str], expected: Tensor, labels: Tensor) -> dict[str, float]:
        truth = to_float64(labels)
        decided = self.decide(expected)
        found = {name: METRICS[name](expected, decided, truth) for name in names if name != "nll"}
        # torch's terms end at -100, so that a wrong certainty is no infinity
        terms = F.binary_cross_entropy(expected.clamp(0, 1), truth, reduction="none")
        return {**found, "nll": float(terms.sum(-1).mean())}

    def answers(self, shown: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return no and yes of each row and class, (n classes, 2), and which is right."""
        return _answers(shown, labels)

    def details(self, expected: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return `labels`: a line of each class, with the threshold that gives its best F1."""
        decided, truth = self.decide(expected), to_float64(labels)
        return {
            "labels": [
                {"label": name, **_of_class(expected[:, k], decided[:, k], truth[:, k])}
                for k, name in enumerate(self.classes)
            ]
        }

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the classes' cross entropies (n,)."""
        right = torch.where(labels > 0, shown, 1 - shown)
        return -right.clamp(min=TINY).log().sum(-1)

    def decide(self, expected: Tensor) -> Tensor:
        """Return 1 for each class of probability `THRESHOLD` or more, else 0: (n, classes)."""
        return (expected >= THRESHOLD).to(expected.dtype)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return lists of the names of classes."""
        return [
            [name for name, on in zip(self.classes, row, strict=True) if on]
            for row in labels.tolist()
        ]


def _f1(true: Tensor, predicted: Tensor, both: Tensor) -> Tensor:
    """F1 from counts of labels, predictions and right ones; 0 where there are none of either."""
    return 2 * both / (true + predicted).clamp(min=1)


def micro_f1(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    """F1 of all decisions together, from 0 to 1."""
    return float(_f1(labels.sum(), decided.sum(), (decided * labels).sum()))


def macro_f1(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    """Mean of the classes' F1, from 0 to 1; a class that no row has counts, as 0."""
    return float(_f1(labels.sum(0), decided.sum(0), (decided * labels).sum(0)).mean())


def subset_accuracy(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    """Share of rows of which every class is right, from 0 to 1."""
    return float((decided == labels).all(-1).double().mean())


def auroc(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    """Mean of the classes' areas under the ROC curve, over classes that some rows have and some
    have not; 1/2 if there is no such class."""
    each = [_auroc(expected[:, k], labels[:, k]) for k in range(labels.shape[1])]
    found = [area for area in each if area is not None]
    return sum(found) / len(found) if found else 0.5


def _ece(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    return ece(*_answers(expected, labels))


def _answers(expected: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    yes = expected.flatten()
    return torch.stack((1 - yes, yes), -1), labels.flatten().long()


def _brier(expected: Tensor, decided: Tensor, labels: Tensor) -> float:
    return float((expected - labels).square().mean())


METRICS: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "subset_accuracy": subset_accuracy,
    "auroc": auroc,
    "ece": _ece,
    "brier": _brier,
}
"""Functions of probabilities, decisions and labels, each (n, classes)."""


def _auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Return the area under the ROC curve of one class; None: all rows have it, or none."""
    having = labels > 0
    if having.all() or not having.any():
        return None
    return calibration.auroc(scores[~having], scores[having])


def _of_class(expected: Tensor, decided: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return counts and scores of one class; each argument is (n,)."""
    rows, predicted, both = labels.sum(), decided.sum(), (decided * labels).sum()
    threshold, best = _best_threshold(expected, labels)
    return {
        "rows": int(rows),
        "predicted": int(predicted),
        "precision": float(both / predicted.clamp(min=1)),
        "recall": float(both / rows.clamp(min=1)),
        "f1": float(_f1(rows, predicted, both)),
        "auroc": _auroc(expected, labels),
        "best_threshold": threshold,
        "best_f1": best,
    }


def _best_threshold(scores: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    """Return the score from which on to predict a class for the best F1, and that F1.

    Both are None if no row has the class. Thresholds that are chosen on the rows which they are
    then measured on are too good on them: choose on validation rows.

    Args:
        scores, labels: (n,).
    """
    rows = labels.sum()
    if not rows:
        return None, None
    ordered, order = scores.sort(descending=True)
    predicted = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    f1 = _f1(rows, predicted, labels[order].cumsum(0))
    # rows of one score are predicted together: only the last of them can end
    f1[:-1][ordered[:-1] == ordered[1:]] = -1
    place = int(f1.argmax())
    return float(ordered[place]), float(f1[place])
