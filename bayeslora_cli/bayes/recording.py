"""Finds which statistics a criterion reads, by calling it once on recording statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ELEMENTS = 4


class _Recorder:
    """Random statistics of a few elements, positive except the mean; records which are read."""

    def __init__(self, names: Iterable[str]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.read: set[str] = set()
        self._values = {name: torch.rand(ELEMENTS, generator=generator) + 0.1 for name in names}
        self._values["mean"] = self._values["mean"] - 0.5

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._values:
            raise AttributeError(f"no statistic {name}: choose of {', '.join(self._values)}")
        self.read.add(name)
        return self._values[name]


def statistics_read(function: Callable[[Any], Any], names: Iterable[str]) -> set[str]:
    """Return the names of the statistics that a criterion reads.

    Args:
        names: the names of all statistics.
    Raises:
        ValueError: the criterion does not return a finite score per element.
    """
    recorder = _Recorder(names)
    scores = function(recorder)
    if not isinstance(scores, Tensor) or scores.shape != (ELEMENTS,):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"it must return a score per element, [{ELEMENTS}], and returned {found}")
    if not scores.isfinite().all():
        raise ValueError(f"its scores must be finite, and were {scores.tolist()}")
    return recorder.read
