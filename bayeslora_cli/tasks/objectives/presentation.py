"""`Presentation`: what of a kind of task is shown, in files, cards and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bayeslora_cli.config.catalogue import OBJECTIVES, ObjectiveEntry
from bayeslora_cli.tasks.task import Examples


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """The part of an `Objective` that shows predictions; all its members have defaults."""

    name: str
    """Its key in `OBJECTIVES`."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of their indices; () if the kind has none."""

    error: ClassVar[str] = "loss, nats"
    """What `errors` measures."""
    column: ClassVar[str] = "prediction"
    """Name of the column of predictions in the files of `predict`."""

    @property
    def entry(self) -> ObjectiveEntry:
        """The catalogue's facts, which are known without torch."""
        return OBJECTIVES[self.name]

    def shown(self, expected: Tensor) -> Tensor:
        """Return the predictions that files and figures show, by default all of `expected`.

        Args:
            expected: what `expected` returned, averaged over samples.
        Returns:
            (n, classes) probabilities, or (n,) scores.
        """
        return expected

    def measures(self, expected: Tensor) -> dict[str, Tensor]:
        """Return further columns of files of predictions, each (n,), by default none.

        Args:
            expected: what `expected` returned, averaged over samples.
        """
        return {}

    @property
    def metric_facts(self) -> Mapping[str, Any]:
        """Facts that readers of the metrics need, for `eval --json`, such as the ECE's bins."""
        return {}

    def details(self, expected: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return what `eval` tells of a split besides its metrics, as JSON: by default nothing.

        A list of records becomes a table on the terminal; a line's first value is its name.

        Args:
            expected: what `expected` returned for n rows, averaged over samples, in float64.
            labels: (n, ...).
        """
        return {}

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor | None:
        """Return how wrong each prediction is (n,), the largest the worst; None: it is not known.

        Args:
            shown: what `shown` returned.
            labels: (n, ...).
        """
        return None

    def rows_of(self, labels: Tensor) -> Tensor | None:
        """Return the row of each prediction (n,); None: each row has one prediction."""
        return None

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the texts of a row as people read them.

        Args:
            item: which of the row's predictions they belong to.
        """
        second = examples.second
        return [examples.first[row], *([] if second is None else [second[row]])]

    @property
    def reading(self) -> tuple[str, ...]:
        """Statements of a model card that print predictions from `logits`, a tensor or an array."""
        return self.entry.reading

    def write_beside(self, directory: Path, max_length: int) -> None:  # few have any
        """Write further files into the directory of a whole exported model."""
