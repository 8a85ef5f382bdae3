"""Multiple choice, by a causal language model (`Choice`) and by an encoder (`MultipleChoice`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.calibration import ECE_BINS, auroc, brier, ece, surprise
from bayeslora_cli.tasks.dialogue import RAW, Turn, from_text, to_text
from bayeslora_cli.tasks.metrics import metrics_by_name
from bayeslora_cli.tasks.objectives.causal import Causal, rows_of_targets, sums
from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.tasks.sources.choice_tasks.questions import (
    LETTERS,
    Continuation,
    choices_from_text,
)
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

MOST = len(LETTERS)
"""Most choices of a row: each has a letter."""
MISSING = -1e9
"""The logit of a choice that a row does not have: its probability is 0."""


class Choice(Causal):
    """Labels are indices of the right choices (n,); predictions are shares of the choices (n, c).

    A row is a prompt and several continuations (`tasks.sources.choice_tasks.questions`). It is
    trained as one sequence, the prompt and the right continuation, whose tokens count. In an
    evaluation the shares are the softmax over the log-likelihoods of all choices given the prompt.
    """

    table_metrics = ("accuracy",)  # tables are asked by letters, which all have the same size
    table_selecting = "accuracy"
    selectable = ("accuracy", "accuracy_norm", "nll", "ece", "brier")
    probabilistic = True
    has_labels = True
    has_confidence = True
    metric_facts: ClassVar[Mapping[str, Any]] = {"ece_bins": ECE_BINS}

    def training_rows(self, examples: Examples) -> Examples:
        """Return each row as its prompt and its right choice, whose tokens count."""
        assert examples.second is not None
        assert examples.labels is not None
        first = [
            continued(prompt, choices_from_text(choices)[label])
            for prompt, choices, label in zip(
                examples.first, examples.second, examples.labels, strict=True
            )
        ]
        return replace(examples, first=first, second=None)

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return indices of the right choices (n,) int64."""
        return torch.tensor(labels, dtype=torch.int64)

    @property
    def outputs(self) -> int:
        """Number of choices that a row may have."""
        return len(self.classes) or MOST

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihood of each choice that a sequence holds, else 0: (rows, outputs).

        Args:
            logits: (c,) log-likelihood of each target.
            batch: also `columns` (c,): the choice that each target belongs to; without it, 0.
        """
        rows, row = rows_of_targets(batch)
        columns = batch.get("columns")
        place = row * self.outputs + (0 if columns is None else columns)
        return sums(logits, place, rows * self.outputs).view(rows, -1)

    def arranged(self, found: Tensor, cells: Tensor) -> Tensor:
        """Return the log-likelihood of each choice, and the size to normalise it by: (n, c, 2).

        A choice that a row does not have gets the log-likelihood -inf.

        Args:
            found: (s, c) what `predict` returned for each sequence.
            cells: (s, 1 + k) int64: each sequence's example, and the sizes in bytes of those of the
                example's first k choices that it holds; 0 for others.
        Raises:
            DataError: a row has more choices than any row of the task.
        """
        most = cells.shape[1] - 1
        if most > self.outputs:
            raise DataError(
                f"found a row of {most} choices; the rows of the task have at most {self.outputs}"
            )
        result = found.new_zeros(int(cells[:, 0].max()) + 1, self.outputs, 2)
        result[..., 0].index_add_(0, cells[:, 0], found)
        result[:, :most, 1].index_add_(0, cells[:, 0], cells[:, 1:].to(found.dtype))
        missing = result[..., 1] == 0
        result[missing] = result.new_tensor([-torch.inf, 1])
        return result

    def expected(self, logits: Tensor) -> Tensor:
        """Return the choices' shares, plain and normalised by size: (n, c, 2).

        Args:
            logits: (n, c, 2) what `arranged` returned.
        """
        likelihoods, sizes = logits.unbind(-1)
        return torch.stack((likelihoods.softmax(-1), (likelihoods / sizes).softmax(-1)), -1)

    def shown(self, expected: Tensor) -> Tensor:
        """Return the plain shares (n, c)."""
        return expected[..., 0]

    def entropy(self, expected: Tensor) -> Tensor:
        """Return entropies of the plain shares (n,) in nats; 0 log 0 is 0."""
        terms: Tensor = torch.special.entr(self.shown(expected))
        return terms.sum(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `ece`, `brier`, and `error_auroc`.

        `error_auroc` is the AUROC with which the entropy tells wrong predictions from right ones;
        it is left out if all are right or all wrong.
        """
        shares = self.shown(expected)
        found = self._by_name(names, expected, labels)
        found |= {"ece": ece(shares, labels), "brier": brier(shares, labels)}
        right = shares.argmax(-1) == labels
        if right.any() and not right.all():
            entropy = self.entropy(expected)
            found["error_auroc"] = auroc(entropy[right], entropy[~right])
        return found

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the task's metrics and `nll`."""
        return self._by_name(names, self.expected(logits.double()), labels)

    def _by_name(self, names: Sequence[str], expected: Tensor, labels: Tensor) -> dict[str, float]:
        plain, normalised = expected.unbind(-1)
        known = {"accuracy": plain, "accuracy_norm": normalised}
        found = {name: _accuracy(known[name], labels) for name in names if name in known}
        others = [name for name in names if name not in known]
        found |= metrics_by_name(others, plain.argmax(-1), labels, plain)
        return {**found, "nll": float(surprise(plain, labels).mean())}

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return -log of the probability of each label (n,)."""
        return surprise(shown, self.truth(labels))

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the prompt, and each choice behind its letter."""
        choices = [] if examples.second is None else choices_from_text(examples.second[row])
        listed = zip(LETTERS, (choice.text.strip() for choice in choices), strict=False)
        return [*super().readable(examples, row), *(f"{a}: {text}" for a, text in listed)]

    def decide(self, expected: Tensor) -> Tensor:
        """Return the index of the likeliest choice (n,), the first of several.

        Args:
            expected: (n, c) what `shown` returned.
        """
        return expected.argmax(-1)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return the names of the choices."""
        names = self.classes or LETTERS
        return [names[index] for index in labels.tolist()]


class MultipleChoice(Classification):
    """A row is a question with its choices, each of which is a sequence with the question.

    An encoder gives each a score; the loss is the cross entropy over a row's choices.

    Labels are the places of the right choices (n,); predictions are probabilities (n, classes),
    where the classes are the letters of the choices that a row may have.
    """

    table_metrics = ("accuracy",)
    table_selecting = "accuracy"
    selectable = ("accuracy", "nll", "ece", "brier")
    problem_type = ""
    weighs_classes = False
    sequences = 2

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim no labels: rows of choices are recognised by their columns."""
        return False

    def model_options(self) -> dict[str, Any]:
        """Return {}: the head has one output, the score of a choice."""
        return {}

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (b, k), filled up to the number of choices that a row may have."""
        return F.pad(logits, (0, self.outputs - logits.shape[1]), value=MISSING)

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the question, and each choice behind its letter."""
        assert examples.second is not None
        choices = zip(self.classes, json.loads(examples.second[row]), strict=False)
        return [examples.first[row], *(f"{letter}: {text}" for letter, text in choices)]


def continued(prompt: str, choice: Continuation) -> str:
    """Return a prompt, the text of a dialogue, with one choice behind it, whose tokens count."""
    given = (Turn(RAW, choice.given, False),) if choice.given else ()
    return to_text((*from_text(prompt), *given, Turn(RAW, choice.text, True)))


def _accuracy(shares: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose likeliest choice is the right one, from 0 to 1.

    If k choices are equally likely, the right one among them, the row counts 1 / k: what a draw
    among them gives on average.

    Args:
        shares: (n, c).
        labels: (n,).
    """
    best = shares == shares.max(-1, keepdim=True).values
    right = best.gather(-1, labels[:, None])[:, 0]
    return float((right / best.sum(-1)).double().mean())
