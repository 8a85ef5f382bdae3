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
    measures: dict[str, str] = {}
    unsure: list[Example] = []
    wrong: list[Example] = []
    sign = 1
    for split, kinds in found.uncertainty.items():
        if kinds:
            name, values = next(iter(kinds.items()))
            measures["unsure"] = name
            unsure += _largest(found, objective, split, values)
    for split in found.predictions:
        if (measured := _mistakes(found, objective, split)) is not None:
            measures["wrong"], values, sign = measured
            wrong += _largest(found, objective, split, values, sign)
    return RunPredictions(
        metrics=metrics,
        bins=found.facts.get("reliability", {}),
        least_sure=tuple(sorted(unsure, key=lambda e: -e.measure)[:SHOWN]),
        most_wrong=tuple(sorted(wrong, key=lambda e: -sign * e.measure)[:SHOWN]),
        measures=measures,
    )


def _outside(found: Evaluation, at: str, split: str) -> dict[str, float]:
    """Return how well each kind of uncertainty tells other rows from the split's, if there are."""
    ood = found.ood or {}
    of_split = ood.get(at, {}).get(split, {})
    return {f"AUROC of {kind} against {ood['source']}": v for kind, v in of_split.items()}


def _mistakes(found: Evaluation, objective: Objective, split: str) -> tuple[str, Any, int] | None:
    """Return what measures a row's error, the measure of each row (n,), and its sign.

    None: predictions and labels of this kind have a form of their own, or there are no labels.
    """
    values, labels = found.predictions[split], found.labels.get(split)
    if not objective.has_labels:
        decided = objective.decide(values)
        return ("mean log-likelihood of a token", decided, -1) if decided.ndim == 1 else None
    if labels is None or labels.ndim != 1 or len(labels) != len(values):
        return None
    if values.ndim == 2 and not labels.is_floating_point():
        return "probability of the label", values.gather(1, labels[:, None].long())[:, 0], -1
    if values.ndim == 1:
        return "absolute error", (values - labels).abs(), 1
    return None


def _largest(
    found: Evaluation, objective: Objective, split: str, values: Any, sign: int = 1
) -> list[Example]:
    """Return the rows of the largest values, or with a sign of -1 of the smallest."""
    order = (sign * values).argsort(descending=True, stable=True)[:SHOWN]
    predictions, labels = found.predictions[split][order], found.labels.get(split)
    decided = objective.spell(objective.decide(predictions))
    known = None
    if objective.has_labels and labels is not None:
        known = objective.spell(labels[order])
    rows = found.examples.get(split)
    examples = []
    for place, row in enumerate(order.tolist()):
        texts = []
        if rows is not None and row < len(rows):
            texts = [rows.first[row], *([] if rows.second is None else [rows.second[row]])]
        examples.append(
            Example(
                split=split,
                row=row,
                texts=tuple(shortened(text, LETTERS) for text in texts),
                label=None if known is None else _spelled(known[place]),
                predicted=_spelled(decided[place]),
                measure=float(values[row]),
            )
        )
    return examples


def _spelled(value: Any) -> str:
    return shortened(f"{value:.4g}" if isinstance(value, float) else value, 200)
