"""Scores of predicted probabilities: likelihoods, calibration, uncertainty."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

OBSERVATION_VARIANCE = 0.5
"""Variance of a score's noise, in its squared units: it belongs to the likelihood whose negative
logarithm is the mean squared error, and IVON treats ess times the loss as that of the data."""
TINY = torch.finfo(torch.float64).tiny
"""What a probability of 0 counts as: 0 has no logarithm."""
ECE_BINS = 15
"""Number of bins of the expected calibration error and of reliability diagrams."""


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log likelihood of the labels under softmax(logits), in nats per example.

    Args:
        logits: (n, classes), or log probabilities.
        labels: (n,) class indices.
    """
    return float(cross_entropy(to_float64(logits), labels.detach().cpu().long()))


def surprise(shares: Tensor, labels: Tensor) -> Tensor:
    """Return the negative logarithm of each label's probability (n,), in nats.

    Args:
        shares: (n, classes) probabilities in float64.
        labels: (n,) class indices.
    """
    own = shares.gather(-1, labels[:, None].long())[:, 0]
    return -own.clamp(min=TINY).log()


def gaussian_nll(
    predictions: Tensor, labels: Tensor, variance: Tensor | float = OBSERVATION_VARIANCE
) -> float:
    """Mean negative log likelihood of scores under N(prediction, variance), in nats per example.

    It is mean(log(2 pi variance) / 2 + (label - prediction)^2 / (2 variance)). With variance 1/2
    that is the mean squared error plus log(pi) / 2.

    Args:
        predictions: (n,) or (n, 1) scores.
        labels: (n,) scores.
        variance: in squared units of the score; one number, or (n,).
    """
    residual = to_float64(labels).reshape(-1) - to_float64(predictions).reshape(-1)
    spread = torch.as_tensor(variance, dtype=torch.float64).cpu()
    return float(((2 * math.pi * spread).log() / 2 + residual.square() / (2 * spread)).mean())


def ece(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the top class over `ECE_BINS` equal bins, from 0 to 1.

    It is the mean over the examples of |accuracy - mean confidence| in the example's bin.

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
    """Mean squared distance between the probabilities and the one-hot label, from 0 to 2.

    The squares are summed over the classes (Brier, Mon. Weather Rev. 78, 1950).

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    truth = one_hot(labels.detach().cpu(), probabilities.shape[1])
    return float((to_float64(probabilities) - truth).square().sum(-1).mean())


def reliability_bins(probabilities: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Return the bins of `ece`, from low confidence to high: rows, mean confidence and accuracy.

    Confidence and accuracy of a bin without rows are 0.

    Args:
        probabilities: (n, classes).
        labels: (n,) class indices.
    """
    confidence, predictions = _below_one(probabilities).max(-1)
    # single precision, as in torchmetrics: a confidence at an edge falls into the same bin
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
    """Area under the ROC curve of a score that should be larger outside the distribution.

    It is the probability that a row from outside scores higher than one from inside; ties count
    half.

    Args:
        inside: (n,) scores of rows from the distribution.
        outside: (m,) scores of rows from outside.
    """
    from sklearn.metrics import roc_auc_score

    truth = torch.cat((torch.zeros(len(inside)), torch.ones(len(outside))))
    return float(roc_auc_score(to_array(truth), to_array(torch.cat((inside, outside)))))


def _below_one(probabilities: Tensor) -> Tensor:
    """Convert probabilities to fp64, capped at the largest fp32 number below 1.

    torchmetrics puts a confidence of 1 into an extra bin, and treats a row with a number above 1,
    which rounding can cause, as logits.
    """
    return to_float64(probabilities).clamp(max=1 - torch.finfo(torch.float32).eps / 2)


def to_float64(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def to_array(values: Tensor) -> NDArray[np.generic]:
    return np.asarray(values.detach().cpu())


def is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
