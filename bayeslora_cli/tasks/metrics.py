"""Metrics of tasks.

Every function takes tensors on any device, in any floating-point type, of n >= 1 examples, and
computes in float64. Logits or scores that are not finite make likelihoods and correlations NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

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


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Metrics by the names that tasks use for them."""


def metrics_by_name(names: Sequence[str], predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute metrics by name and, if both correlations are among them, their mean
    `pearson_spearman`.

    Args:
        names: keys of `METRICS`.
        predictions: (n,) class indices, or scores.
        labels: (n,) class indices, or scores.
    Raises:
        UserError: no such metric.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric {name}: unknown; there are {', '.join(METRICS)}")
    result = {name: METRICS[name](predictions, labels) for name in names}
    if "pearson" in result and "spearman" in result:
        result["pearson_spearman"] = (result["pearson"] + result["spearman"]) / 2
    return result
