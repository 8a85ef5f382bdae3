"""Metrics of tasks.

Every function takes tensors on any device, in any floating-point type, of n >= 1 examples, and
computes in float64. Logits or scores that are not finite make likelihoods and correlations NaN.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bayeslora_cli.config.catalogue import METRICS, implementation
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks import rank_correlation
from bayeslora_cli.tasks.calibration import is_constant, to_array, to_float64


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of examples whose predicted class is the label, from 0 to 1.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(to_array(labels), to_array(predictions)))


def f1(predictions: Tensor, labels: Tensor) -> float:
    """F1 of class 1 against class 0: 2 tp / (2 tp + fp + fn), from 0 to 1.

    It is 0.0 if class 1 occurs neither in the predictions nor in the labels.

    Args:
        predictions: (n,) class indices, 0 or 1.
        labels: (n,) class indices, 0 or 1.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(to_array(labels), to_array(predictions), pos_label=1, zero_division=0.0))


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Mean of the classes' F1, from 0 to 1.

    A class that is neither a label nor a prediction of any example does not count.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import f1_score

    return float(
        f1_score(to_array(labels), to_array(predictions), average="macro", zero_division=0.0)
    )


def weighted_f1(predictions: Tensor, labels: Tensor) -> float:
    """Mean of the classes' F1, each weighted by its share of the labels, from 0 to 1.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import f1_score

    return float(
        f1_score(to_array(labels), to_array(predictions), average="weighted", zero_division=0.0)
    )


def class_auroc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of each class against the others, from 0 to 1: the classes' mean.

    Of two classes it is that of class 1, which is that of class 0 too. A class that no label has,
    or all have, does not count; if none counts, it is 0.5, as by chance.

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    from sklearn.metrics import roc_auc_score

    scores, found = to_array(probabilities), to_array(labels)
    areas = [
        float(roc_auc_score(found == index, scores[:, index]))
        for index in range(scores.shape[1])
        if 0 < (found == index).sum() < len(found)
    ]
    return sum(areas) / len(areas) if areas else 0.5


def matthews(predictions: Tensor, labels: Tensor) -> float:
    """Matthews' correlation coefficient, from -1 to 1 (Biochim. Biophys. Acta 405, 1975).

    If all predictions or all labels are one class, the formula gives 0/0; the result is 0.0.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import matthews_corrcoef

    if is_constant(predictions) or is_constant(labels):
        return 0.0  # this also avoids a warning about a confusion matrix of one cell
    return float(matthews_corrcoef(to_array(labels), to_array(predictions)))


def pearson(predictions: Tensor, labels: Tensor) -> float:
    """Pearson's correlation coefficient, from -1 to 1.

    If all predictions or all labels are the same, the formula gives 0/0; the result is 0.0.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    from scipy.stats import pearsonr

    x, y = to_float64(predictions), to_float64(labels)
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    if is_constant(x) or is_constant(y):
        return 0.0
    with warnings.catch_warnings():
        # values may differ only in their last bits: the correlation is then one of rounding errors
        warnings.filterwarnings("ignore", message="An input array is nearly constant")
        return float(pearsonr(x.numpy(), y.numpy())[0])


def spearman(predictions: Tensor, labels: Tensor) -> float:
    """Spearman's rank correlation, from -1 to 1; ties get their mean rank.

    If all predictions or all labels are the same, the formula gives 0/0; the result is 0.0.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    x, y = to_float64(predictions), to_float64(labels)
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    return rank_correlation.spearman(x.numpy(), y.numpy()) or 0.0


def pearson_spearman(predictions: Tensor, labels: Tensor) -> float:
    """Mean of Pearson's and Spearman's correlations, from -1 to 1.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def mae(predictions: Tensor, labels: Tensor) -> float:
    """Mean absolute error, in the unit of the scores.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(to_float64(labels).numpy(), to_float64(predictions).numpy()))


def rmse(predictions: Tensor, labels: Tensor) -> float:
    """Root of the mean squared error, in the unit of the scores.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    from sklearn.metrics import root_mean_squared_error

    return float(
        root_mean_squared_error(to_float64(labels).numpy(), to_float64(predictions).numpy())
    )


def class_scores(decisions: Tensor, labels: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class its `label`, its `rows`, and `precision`, `recall` and `f1`.

    A share of no rows is 0.

    Args:
        decisions: (n,) class indices.
        labels: (n,) class indices.
        classes: names of the classes.
    """
    from sklearn.metrics import precision_recall_fscore_support

    found = precision_recall_fscore_support(
        to_array(labels), to_array(decisions), labels=range(len(classes)), zero_division=0.0
    )
    return [
        {
            "label": name,
            "rows": int(rows),
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
        }
        for name, p, r, f, rows in zip(classes, *found, strict=True)
    ]


MOST_CLASSES = 100
"""Most classes of a confusion matrix: one of more would be mostly zeros."""
_CONFUSIONS = 100


def confusions(decisions: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return `confusion`, the rows of each label (lines) and prediction (columns), for at most
    `MOST_CLASSES` classes; and `confused`, the most frequent pairs of a label and another class.

    Args:
        decisions: (n,) class indices.
        labels: (n,) class indices.
        classes: names of the classes.
    """
    from sklearn.metrics import confusion_matrix

    pairs = Counter(zip(labels.tolist(), decisions.tolist(), strict=True))
    wrong = sorted((-rows, *pair) for pair, rows in pairs.items() if pair[0] != pair[1])
    found: dict[str, Any] = {
        "confused": [
            {"label": classes[label], "predicted": classes[other], "rows": -rows}
            for rows, label, other in wrong[:_CONFUSIONS]
        ]
    }
    if len(classes) <= MOST_CLASSES:
        matrix = confusion_matrix(
            to_array(labels), to_array(decisions), labels=list(range(len(classes)))
        )
        found = {"confusion": matrix.tolist(), **found}
    return found


def metrics_by_name(
    names: Sequence[str], decisions: Tensor, labels: Tensor, probabilities: Tensor | None = None
) -> dict[str, float]:
    """Compute metrics by name and, if both correlations are among them, their mean
    `pearson_spearman`. Metrics that the kind of task computes itself are left out.

    Args:
        names: keys of `config.entries.metrics.METRICS`.
        decisions: (n, ...) predictions in the form of the labels: class indices, or scores.
        labels: (n, ...).
        probabilities: (n, classes); None: the predictions are scores.
    Raises:
        UserError: no such metric.
    """
    result = {}
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric {name}: unknown; there are {', '.join(METRICS)}")
        entry = METRICS[name]
        if entry.implementation is not None:
            predictions = probabilities if entry.of_probabilities else decisions
            result[name] = float(implementation(entry.implementation)(predictions, labels))
    if "pearson" in result and "spearman" in result:
        result["pearson_spearman"] = (result["pearson"] + result["spearman"]) / 2
    return result
