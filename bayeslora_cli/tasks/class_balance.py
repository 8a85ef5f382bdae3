"""Classes of very different sizes: what is advised, and their weights in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from bayeslora_cli.config.values import BALANCED, parse_weights
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.tasks.task import Task

UNEVEN = 4
"""Classes are uneven if the largest has this many times the rows of the smallest."""


def advice(task: Task, labels: Sequence[Any]) -> str | None:
    """Return one line for a task whose classes are uneven and whose accuracy selects; or None.

    The kind of task is one with `Objective.weighs_classes`.

    Args:
        labels: class indices of the training rows.
    """
    if task.selecting != "accuracy":
        return None
    rows = Counter(labels)
    most, least = (of(rows, key=lambda index: rows[index]) for of in (max, min))
    if rows[most] < UNEVEN * rows[least]:
        return None
    return (
        f"the classes are uneven: {rows[most]:,} training rows are {task.classes[most]!r}, "
        f"{rows[least]:,} {task.classes[least]!r}. Accuracy hardly sees the rare ones: --select "
        "macro-f1 counts all classes alike, and --class-weights balanced does so in the loss"
    )


def class_weights(asked: str, classes: Sequence[str], labels: Sequence[int]) -> tuple[float, ...]:
    """Return each class's weight in the loss, whose mean over the training rows is 1.

    `balanced` weighs class c by n / (k n_c), as in scikit-learn: all k classes that occur in the n
    rows then have the same sum of weights. Of weights by label only the ratios count; a class that
    is not named has 1.

    Args:
        asked: the value of --class-weights.
        labels: (n,) class indices.
    Raises:
        ConfigError: there is no such class.
    """
    rows = Counter(labels)
    if asked == BALANCED:
        given = [1 / rows[index] if index in rows else 0.0 for index in range(len(classes))]
    else:
        given = _named(asked, classes)
    total = sum(given[index] * count for index, count in rows.items())
    if not total:
        raise ConfigError(
            [f"--class-weights {asked}: no training row has a class with a weight above 0"]
        )
    return tuple(weight * len(labels) / total for weight in given)


def presence_weights(
    asked: str, classes: Sequence[str], labels: Sequence[Collection[int]]
) -> tuple[float, ...]:
    """Return the weight in the loss of each class where a row has it. Where a row lacks it, the
    weight is such that the class's mean over the training rows is 1.

    `balanced` gives the rows that have a class and those that lack it the same sum of weights. A
    weight by label is the ratio of both; it is 1 for a class that is not named, and for one that no
    row has, or all.

    Args:
        asked: the value of --class-weights.
        labels: of n rows, the indices of each one's classes.
    Raises:
        ConfigError: there is no such class.
    """
    rows, n = Counter(chain.from_iterable(labels)), len(labels)
    ratios = [0.0] * len(classes) if asked == BALANCED else _named(asked, classes)
    found = []
    for index, ratio in enumerate(ratios):
        having = rows[index]
        if not 0 < having < n:
            found.append(1.0)
        elif asked == BALANCED:
            found.append(n / (2 * having))
        else:
            found.append(ratio * n / (ratio * having + n - having))
    return tuple(found)


def _named(asked: str, classes: Sequence[str]) -> list[float]:
    """Return the weight of each class by its label, 1 if it is not named.

    Raises:
        ConfigError: there is no such class.
    """
    named = parse_weights(asked)
    unknown = [name for name in named if name not in classes]
    if unknown:
        shown = ", ".join(classes[:20]) + ", …" * (len(classes) > 20)
        raise ConfigError([f"--class-weights: no class {unknown[0]!r}; there are {shown}"])
    return [named.get(name, 1.0) for name in classes]


def weights_text(weights: Mapping[str, float]) -> str:
    """Write the weights of classes on one line, at most twenty of them."""
    shown = [f"{name} {weight:.3g}" for name, weight in weights.items()]
    return ", ".join([*shown[:20], *(["…"] if len(shown) > 20 else [])])
