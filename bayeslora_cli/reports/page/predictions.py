"""`RunPredictions`: what the page shows of a run's predictions on its validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Bins = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A row that stands out."""

    split: str
    row: int
    """Its number in the split, from 0."""
    texts: tuple[str, ...]
    label: str | None
    """None: it has none."""
    predicted: str | None
    """None: nothing is decided, as of texts that a language model only reads."""
    measure: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPredictions:
    """A run's predictions, as far as the page shows them."""

    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    """`mean`, and `sampled` if there are samples -> split -> metric -> value."""
    bins: Mapping[str, Mapping[str, Bins]]
    """Likewise by split the bins of confidence; {} for kinds without confidence."""
    least_sure: tuple[Example, ...]
    most_wrong: tuple[Example, ...]
    measures: Mapping[str, str]
    """What `Example.measure` is, of the lists `unsure` and `wrong`."""
