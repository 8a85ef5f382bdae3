"""The metrics of tasks, negative log likelihoods in nats an example, and calibration.

Every function takes tensors on any device, in any floating-point type, of n >= 1 examples, and
computes in float64. Logits or scores that are not finite make likelihoods and correlations NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from bayeslora_cli.tasks import rank_correlation

OBSERVATION_VARIANCE = 0.5
"""Of a score's noise, in its squared units: the likelihood that training with mean squared error
stands for, and that IVON's ess times the loss takes for the data's."""


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The share of examples whose predicted class is the label, from 0 to 1.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(_array(labels), _array(predictions)))


def f1(predictions: Tensor, labels: Tensor) -> float:
    """F1 of class 1 against class 0: 2 tp / (2 tp + fp + fn), from 0 to 1.

    It is 0.0 when nothing is positive, neither in the predictions nor in the labels.

    Args:
        predictions: (n,) class indices, 0 or 1.
        labels: (n,) class indices, 0 or 1.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(_array(labels), _array(predictions), pos_label=1, zero_division=0.0))


def macro_f1(predictions: Tensor, labels: Tensor) -> float:
    """Mean over the classes of their F1, from 0 to 1; a class that nobody names counts as no class.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(_array(labels), _array(predictions), average="macro", zero_division=0.0))


def matthews(predictions: Tensor, labels: Tensor) -> float:
    """Matthews' correlation coefficient, from -1 to 1 (Biochim. Biophys. Acta 405, 1975).

    It is 0.0 when all predictions or all labels are one class, where it is 0/0.

    Args:
        predictions: (n,) class indices.
        labels: (n,) class indices.
    """
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        return 0.0  # and no warning about a confusion matrix of one cell
    return float(matthews_corrcoef(_array(labels), _array(predictions)))


def pearson(predictions: Tensor, labels: Tensor) -> float:
    """Pearson's correlation coefficient, from -1 to 1.

    It is 0.0 when all predictions or all labels are the same, where it is 0/0.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    from scipy.stats import pearsonr

    x, y = _float64(predictions), _float64(labels)
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    if _constant(x) or _constant(y):
        return 0.0
    with warnings.catch_warnings():
        # values that differ in their last bits alone: the correlation is what rounding left
        warnings.filterwarnings("ignore", message="An input array is nearly constant")
        return float(pearsonr(x.numpy(), y.numpy())[0])


def spearman(predictions: Tensor, labels: Tensor) -> float:
    """Spearman's rank correlation, from -1 to 1; ties take their mean rank.

    It is 0.0 when all predictions or all labels are the same, where it is 0/0.

    Args:
        predictions: (n,) scores.
        labels: (n,) scores.
    """
    x, y = _float64(predictions), _float64(labels)
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    return rank_correlation.spearman(x.numpy(), y.numpy()) or 0.0


ECE_BINS = 15
"""Bins of the expected calibration error and of reliability diagrams."""

METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""The metrics by the names that tasks use for them."""


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log likelihood of the labels under softmax(logits), in nats an example.

    Args:
        logits: (n, classes); log probabilities serve as well.
        labels: (n,) class indices.
    """
    return float(cross_entropy(_float64(logits), labels.detach().cpu().long()))


def gaussian_nll(
    predictions: Tensor, labels: Tensor, variance: Tensor | float = OBSERVATION_VARIANCE
) -> float:
    """Mean negative log likelihood of scores under N(prediction, variance), in nats an example.

    mean(log(2 pi variance) / 2 + (label - prediction)^2 / (2 variance)). With the variance 1/2 it
    is the mean squared error plus log(pi) / 2.

    Args:
        predictions: (n,) or (n, 1) scores.
        labels: (n,) scores.
        variance: in squared units of the score; one, or (n,).
    """
    residual = _float64(labels).reshape(-1) - _float64(predictions).reshape(-1)
    spread = torch.as_tensor(variance, dtype=torch.float64).cpu()
    return float(((2 * math.pi * spread).log() / 2 + residual.square() / (2 * spread)).mean())


def ece(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the top class over `ECE_BINS` equal bins, from 0 to 1.

    The mean over the examples of |accuracy - mean confidence| of the example's bin.

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    found = multiclass_calibration_error(
        _below_one(probabilities),
        labels.detach().cpu(),
        num_classes=probabilities.shape[1],
        n_bins=ECE_BINS,
    )
    return float(found)


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the probabilities from the label's one-hot coding, from 0 to 2.

    The squares are summed over the classes (Brier, Mon. Weather Rev. 78, 1950).

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    truth = one_hot(labels.detach().cpu(), probabilities.shape[1])
    return float((_float64(probabilities) - truth).square().sum(-1).mean())


def reliability_bins(probabilities: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """The bins of `ece`, from low confidence to high: rows, mean confidence and accuracy.

    Confidence and accuracy of a bin without rows are 0.

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    confidence, predictions = _below_one(probabilities).max(-1)
    # single precision, as torchmetrics has them: a confidence at an edge falls into the same bin
    edges = torch.linspace(0, 1, ECE_BINS + 1)
    places = torch.bucketize(confidence.float(), edges, right=True) - 1
    right = (predictions == labels.detach().cpu()).double()
    found = []
    for place in range(ECE_BINS):
        inside = places == place
        rows = int(inside.sum())
        found.append(
            {
                "rows": rows,
                "confidence": float(confidence[inside].mean()) if rows else 0.0,
                "accuracy": float(right[inside].mean()) if rows else 0.0,
            }
        )
    return found


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a score that is to be larger outside the distribution.

    The probability that a row from outside scores higher than one from inside, ties counting half.

    Args:
        inside: (n,) scores of rows of the distribution.
        outside: (m,) scores of others.
    """
    from sklearn.metrics import roc_auc_score

    truth = torch.cat((torch.zeros(len(inside)), torch.ones(len(outside))))
    return float(roc_auc_score(_array(truth), _array(torch.cat((inside, outside)))))


def task_metrics(
    names: Sequence[str], logits: Tensor, labels: Tensor, *, regression: bool
) -> dict[str, float]:
    """Every metric of a task, by name, with `nll` (in nats) and, where both correlations are
    asked for, their mean `pearson_spearman`.

    Args:
        names: keys of `METRICS`.
        logits: (n, classes); for regression scores (n, 1) or (n,).
        labels: (n,) class indices; for regression scores.
        regression: whether labels are scores.
    """
    predictions = _float64(logits).reshape(-1) if regression else logits.argmax(dim=-1)
    result = {name: METRICS[name](predictions, labels) for name in names}
    if "pearson" in result and "spearman" in result:
        result["pearson_spearman"] = (result["pearson"] + result["spearman"]) / 2
    result["nll"] = gaussian_nll(predictions, labels) if regression else nll(logits, labels)
    return result


def _below_one(probabilities: Tensor) -> Tensor:
    """Probabilities in fp64, at most the largest fp32 number below 1.

    torchmetrics gives a confidence of 1 a bin of its own, and takes rows with a number above 1,
    as rounding leaves them, for logits.
    """
    return _float64(probabilities).clamp(max=1 - torch.finfo(torch.float32).eps / 2)


def _float64(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _array(values: Tensor) -> NDArray[np.generic]:
    return np.asarray(values.detach().cpu())


def _constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
