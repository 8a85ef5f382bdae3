"""Chooses the examples that a run is least sure of, and most wrong about."""

from __future__ import annotations

from typing import Any

from bayeslora_cli.evaluation.evaluation import Evaluation
from bayeslora_cli.reports.page.html import shortened
from bayeslora_cli.reports.page.predictions import Example, RunPredictions
from bayeslora_cli.tasks.objectives.objective import Objective

SHOWN = 8
"""Number of examples in each list."""
LETTERS = 600
"""Largest number of characters of a text."""


def summarise(found: Evaluation, objective: Objective) -> RunPredictions:
    """Choose what the page shows of an evaluation."""
    metrics = {
        at: {split: {**values, **_outside(found, at, split)} for split, values in by_split.items()}
        for at, by_split in (("mean", found.metrics), ("sampled", found.sampled or {}))
        if by_split
    }
    measures = {"wrong": objective.error}
    unsure: list[Example] = []
    wrong: list[Example] = []
    for split, kinds in found.uncertainty.items():
        if kinds:
            measures["unsure"], values = next(iter(kinds.items()))
            unsure += _largest(found, objective, split, values)
    for split, predictions in found.predictions.items():
        labels = found.labels.get(split)
        errors = None if labels is None else objective.errors(predictions, labels)
        if errors is not None:
            wrong += _largest(found, objective, split, errors, wrong=True)
    return RunPredictions(
        metrics=metrics,
        bins=found.facts.get("reliability", {}),
        least_sure=_first(unsure),
        most_wrong=_first(wrong),
        measures=measures,
    )


def _first(examples: list[Example]) -> tuple[Example, ...]:
    return tuple(sorted(examples, key=lambda e: -e.measure)[:SHOWN])


def _outside(found: Evaluation, at: str, split: str) -> dict[str, float]:
    """Return how well each kind of uncertainty tells other rows from the split's, if there are."""
    ood = found.ood or {}
    of_split = ood.get(at, {}).get(split, {})
    return {f"AUROC of {kind} against {ood['source']}": v for kind, v in of_split.items()}


def _largest(
    found: Evaluation, objective: Objective, split: str, values: Any, *, wrong: bool = False
) -> list[Example]:
    """Return the rows of the largest values (n,); of a row with several predictions the largest.

    Args:
        wrong: only those whose prediction is not the label.
    """
    predictions, labels, rows = (
        found.predictions[split],
        found.labels.get(split),
        found.examples[split],
    )
    owners = None if labels is None else objective.rows_of(labels)
    decided = objective.decide(predictions)
    known = labels if objective.has_labels or objective.has_confidence else None
    order = values.argsort(descending=True, stable=True)
    if wrong:
        order = order[values[order] > 0]
    if wrong and known is not None:
        right = decided == objective.truth(known)
        order = order[~right.view(len(right), -1).all(-1)[order]]
    examples: list[Example] = []
    seen = set()
    for place in order.tolist():
        row = place if owners is None else int(owners[place])
        if row in seen:
            continue
        seen.add(row)
        item = 0 if owners is None else place - int((owners < row).sum())
        texts = objective.readable(rows, row, item)
        one = slice(place, place + 1)
        examples.append(
            Example(
                split=split,
                row=row,
                texts=tuple(shortened(text, LETTERS) for text in texts),
                label=None if known is None else _spelled(objective.spell(known[one])[0]),
                predicted=None if known is None else _spelled(objective.spell(decided[one])[0]),
                measure=float(values[place]),
            )
        )
        if len(examples) == SHOWN:
            break
    return examples


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return shortened(", ".join(map(str, value)) or "none", 200)
    return shortened(f"{value:.4g}" if isinstance(value, float) else value, 200)
