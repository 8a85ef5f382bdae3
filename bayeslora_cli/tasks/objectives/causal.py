"""Causal language models: the log-likelihood of the tokens that count, perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

PADDING = -100
"""The target of places in `targets` that only fill a batch; torch's losses ignore it as well."""


class Causal(Objective):
    """Rows are token sequences; the loss is the mean of -log p(token | the tokens before it).

    It is taken over the tokens that count: answers, or all (`TokenisedSplit.counted`). What an
    evaluation keeps of a row is the sum of its log-likelihoods and the number of its tokens that
    count, (n, 2). Rows have no labels: each label is 0.
    """

    table_metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    table_selecting = "nll"
    selectable: ClassVar[tuple[str, ...]] = ("nll", "perplexity")
    problem_type = ""
    probabilistic = False
    has_labels = False
    error = "loss per token, nats"
    metric_facts: ClassVar[Mapping[str, Any]] = {"nll_unit": "nats per counted token"}

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim no labels: rows without labels are recognised by their columns."""
        return False

    @classmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return (): there are no classes."""
        return ()

    def parse(self, column: LabelColumn) -> list[Any]:
        """Return 0 for each row."""
        return [0] * len(column.values)

    @property
    def outputs(self) -> int:
        """Two: the sum of log-likelihoods and the number of tokens that it is over."""
        return 2

    def model_options(self) -> dict[str, Any]:
        """Return {}: there is no head to describe."""
        return {}

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return zeros (n,) int64."""
        return torch.zeros(len(labels), dtype=torch.int64)

    def counts(
        self, labels: Tensor, lengths: Tensor, counted: Tensor | None = None
    ) -> Tensor | None:
        """Return the number of tokens of each row that count, (n,)."""
        return counted

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of -log p over the targets in nats; 0 if a batch has none.

        Args:
            logits: (c,) log-likelihood of each target, 0 where the target is `PADDING`.
            batch: holds `targets` (c,).
        """
        return -logits.sum() / (batch["targets"] != PADDING).sum().clamp(min=1)

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return each row's sum of log-likelihoods and number of targets, (rows, 2).

        Args:
            logits: (c,) log-likelihood of each target.
            batch: `targets` (c,), and `predicting` (c,): the places whose next token is predicted,
                in the packed rows, which begin at `row_offsets` (rows + 1,), or in `input_ids`
                (rows, w), counted row by row.
        """
        counts = (batch["targets"] != PADDING).to(logits.dtype)
        rows, row = rows_of_targets(batch)
        return torch.stack([sums(x, row, rows) for x in (logits, counts)], 1)

    def expected(self, logits: Tensor) -> Tensor:
        """Return what `predict` returned: over samples the log-likelihoods are averaged.

        Likelihoods of whole rows are too small for a float, so their own mean is not taken.
        """
        return logits

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return `nll`, the mean of -log p over all counted tokens in nats, and `perplexity`."""
        total, count = expected.double().sum(0).tolist()
        nll = -total / max(1.0, count)
        return {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}  # exp(710) is no float

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return each row's mean of -log p of a counted token (n,)."""
        return -Causal.decide(self, shown)

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return what each speaker says, behind its role."""
        turns = from_text(examples.first[row])
        return [f"{turn.role}: {turn.text}" if turn.role else turn.text for turn in turns]

    def decide(self, expected: Tensor) -> Tensor:
        """Return each row's mean log-likelihood of a token (n,)."""
        return expected[:, 0] / expected[:, 1].clamp(min=1)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return numbers with the fewest digits that give the same value back."""
        return shortest_numbers(labels)


def rows_of_targets(batch: Mapping[str, Tensor]) -> tuple[int, Tensor]:
    """Return the number of rows of a batch, and the row of each target, (c,) int64."""
    if (offsets := batch.get("row_offsets")) is None:
        rows, width = batch["input_ids"].shape
        return rows, batch["predicting"] // width
    row = torch.searchsorted(offsets[1:].long(), batch["predicting"], right=True)
    return len(offsets) - 1, row


def sums(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Sum values (c,) that belong to the same of `count` places, each in a fixed order: (count,).

    A GPU adds what is scattered in no fixed order.
    """
    own = places == torch.arange(count, device=places.device)[:, None]  # (count, c)
    return torch.where(own, values, 0).sum(1)
