"""Token classification, a tag for each word: cross entropy, entities by seqeval, calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.tasks.objectives.causal import PADDING
from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

_OF_ENTITIES = ("entity_f1", "entity_precision", "entity_recall")


class Tagging(Classification):
    """A row is a sequence of words, and each word has one class, its tag.

    Labels are (words, 2) int64 over all rows: the index of the tag, and the row. Predictions are
    probabilities (words, classes). A word is predicted at its first token.
    """

    table_metrics = (*_OF_ENTITIES, "accuracy")
    table_selecting = "entity_f1"
    selectable = (*_OF_ENTITIES, "accuracy", "macro_f1", "nll", "ece", "brier")
    problem_type = ""

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim no labels: rows of words are recognised by their columns."""
        return False

    def model_options(self) -> dict[str, Any]:
        """Return the names of the classes."""
        found = super().model_options()
        del found["problem_type"]
        return found

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return the index of each word's tag, and its row: (words, 2) int64."""
        tags = [tag for row in labels for tag in row]
        rows = [row for row, own in enumerate(labels) for _ in own]
        return torch.tensor([tags, rows], dtype=torch.int64).T.contiguous()

    def counts(
        self, labels: Tensor, lengths: Tensor, counted: Tensor | None = None
    ) -> Tensor | None:
        """Return the number of words of each row, (n,)."""
        return counted

    def class_weights(self, asked: str, labels: Sequence[Any]) -> tuple[float, ...]:
        """Return each tag's weight, whose mean over all words is 1."""
        return super().class_weights(asked, [tag for row in labels for tag in row])

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross entropy of a word in nats, times its weight if it has one.

        Args:
            logits: (c, classes) at the first tokens of words.
            batch: holds `targets` (c,), the tags, or `PADDING`; with --class-weights also `weights`
                (c,).
        """
        targets = batch["targets"]
        if "weights" not in batch:
            return F.cross_entropy(logits, targets, ignore_index=PADDING)
        losses = F.cross_entropy(logits, targets, ignore_index=PADDING, reduction="none")
        return (losses * batch["weights"]).sum() / (targets != PADDING).sum().clamp(min=1)

    def arranged(self, found: Tensor, cells: Tensor) -> Tensor:
        """Return the outputs as they are: words of divided rows lie one after the other."""
        return found

    def truth(self, labels: Tensor) -> Tensor:
        """Return the indices of the tags (words,)."""
        return labels[:, 0]

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, and `nll`, `ece` and `brier` of a word."""
        others = [name for name in names if name not in _OF_ENTITIES]
        return {
            **self._of_entities(names, expected, labels),
            **super().metrics(others, expected, self.truth(labels)),
        }

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the task's metrics and `nll`; `logits` may be log probabilities."""
        if labels.ndim == 1:  # called by the metrics of classification
            return super().training_metrics(names, logits, labels)
        others = [name for name in names if name not in _OF_ENTITIES]
        return {
            **self._of_entities(names, logits, labels),
            **super().training_metrics(others, logits, self.truth(labels)),
        }

    def _of_entities(
        self, names: Sequence[str], scores: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return F1, precision and recall of whole entities, by seqeval."""
        from seqeval import metrics as seqeval

        functions = {
            "entity_f1": seqeval.f1_score,
            "entity_precision": seqeval.precision_score,
            "entity_recall": seqeval.recall_score,
        }
        wanted = [name for name in functions if name in names]
        if not wanted:
            return {}
        found = self._sequences(scores, labels)
        return {name: float(functions[name](*found, zero_division=0)) for name in wanted}

    def _sequences(self, scores: Tensor, labels: Tensor) -> tuple[list[list[str]], list[list[str]]]:
        """Return the tags of each row's words, right ones and predicted ones, as seqeval reads
        them: a tag of no scheme is an entity of one word."""
        names = [tag if _has_scheme(tag) else f"B-{tag}" for tag in self.classes]
        sizes = labels[:, 1].bincount().tolist()  # no row is without words
        right, found = (
            [[names[tag] for tag in row.tolist()] for row in torch.split(tags, sizes)]
            for tags in (self.truth(labels), self.decide(scores))
        )
        return right, found

    def details(self, expected: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return `entities`: a line of each kind of entity, with its number in the rows."""
        from seqeval.metrics import classification_report

        report = classification_report(
            *self._sequences(expected, labels), output_dict=True, zero_division=0
        )
        return {
            "entities": [
                {
                    "entity": name,
                    "number": int(line["support"]),
                    "precision": float(line["precision"]),
                    "recall": float(line["recall"]),
                    "f1": float(line["f1-score"]),
                }
                for name, line in report.items()
                if not name.endswith(" avg")
            ]
        }

    def rows_of(self, labels: Tensor) -> Tensor:
        """Return the row of each word (words,)."""
        return labels[:, 1]

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return a word, and the words of its row."""
        words = json.loads(examples.first[row])
        return [words[item], " ".join(words)]

    def spell(self, labels: Tensor) -> list[Any]:
        """Return the names of tags: of labels (words, 2), or of decisions (words,)."""
        return super().spell(labels if labels.ndim == 1 else self.truth(labels))


def _has_scheme(tag: str) -> bool:
    """Return whether a tag says where in an entity its word stands, as B-PER and O do."""
    return tag == "O" or (tag[:2] in ("B-", "I-", "E-", "S-") and len(tag) > 2)
