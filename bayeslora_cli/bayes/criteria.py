"""Importance criteria: functions from statistics of single elements to their scores.

Source: Chen & Garner, "A Bayesian Interpretation of Adaptive Low-Rank Adaptation"
(arXiv 2409.10673); `sensitivity` is AdaLoRA's (Zhang et al., ICLR 2023, eq. 8-10).

To add a criterion here, write a function and an entry in `config.catalogue.CRITERIA`; to add one
from a script, call `register`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bayeslora_cli.config.catalogue import CRITERIA, CriterionEntry, implementation
from bayeslora_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ElementStatistics:
    """Statistics of each element; all tensors have one shape."""

    mean: Tensor
    """mu: the posterior's mean, or the parameter itself under a point estimate."""
    sigma: Tensor | None = None
    """The posterior's standard deviation; None under a point estimate."""
    sensitivity: Tensor | None = None
    """I_bar: exponential moving average of |theta * gradient|."""
    uncertainty: Tensor | None = None
    """U: exponential moving average of |I - I_bar|."""


def sensitivity(statistics: ElementStatistics) -> Tensor:
    """AdaLoRA's smoothed sensitivity times its uncertainty, s = I_bar * U (AdaLoRA, eq. 10)."""
    assert statistics.sensitivity is not None
    assert statistics.uncertainty is not None
    return statistics.sensitivity * statistics.uncertainty


def magnitude(statistics: ElementStatistics) -> Tensor:
    """Magnitude of the mean, s = |mu|."""
    return statistics.mean.abs()


def snr(statistics: ElementStatistics) -> Tensor:
    """Signal-to-noise ratio of the parameter, s = x = |mu| / sigma."""
    assert statistics.sigma is not None
    return statistics.mean.abs() / statistics.sigma


def snr_abs(statistics: ElementStatistics) -> Tensor:
    """Signal-to-noise ratio of |theta|, E|theta| / std |theta|, for theta ~ N(mu, sigma^2).

    Written with x = |mu|/sigma and c = E|theta|/sigma - x = 2 (phi(x) - x Q(x)), which tends to 0:
    s = (x + c) / sqrt(1 - 2 x c - c^2). The textbook form subtracts two numbers near x^2 and loses
    all digits in fp32 from x = 1000 on; this one is accurate from 0 (where s = 1.3236) to 1e8
    (s = x).
    """
    x = snr(statistics)
    density = (x.square() * -0.5).exp() / math.sqrt(2 * math.pi)
    tail = 0.5 * (x / math.sqrt(2)).erfc()
    c = 2 * (density - x * tail)
    return (x + c) / (1 - 2 * x * c - c.square()).sqrt()


def precision(statistics: ElementStatistics) -> Tensor:
    """Inverse standard deviation, s = 1 / sigma."""
    assert statistics.sigma is not None
    return statistics.sigma.reciprocal()


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """A score of elements, and the statistics that training must keep for it."""

    score: Callable[[ElementStatistics], Tensor]
    needs_gradient: bool = False
    """Whether it needs the sensitivity averages, updated at every step."""


def load_criterion(name: str) -> Criterion:
    """Return the criterion that the catalogue lists under a name."""
    entry = CRITERIA[name]
    return Criterion(
        score=implementation(entry.implementation), needs_gradient=entry.needs_gradient
    )


def register(
    name: str,
    function: Callable[[ElementStatistics], Tensor],
    *,
    needs_posterior: bool | None = None,
    needs_gradient: bool | None = None,
) -> None:
    """Register a script's own criterion, which `--criterion NAME` then accepts in this process.

        criteria.register("mine", lambda s: s.mean.abs() * s.sensitivity)

    To resume such a run, a script must register the criterion first. It does not work with
    `--jobs`, whose worker processes do not run the script.

    Args:
        name: small letters, digits and hyphens; it becomes part of the run directory's name.
        function: maps the statistics of elements to their scores, of the same shape, only by
            tensor operations, since a captured step calls it once.
        needs_posterior: whether it reads sigma; None: find out by calling it once.
        needs_gradient: whether it reads sensitivity or uncertainty; None: likewise.
    Raises:
        UserError: the name is taken or not allowed, or the function does not return one finite
            score per element.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(f"criterion {name!r}: use small letters, digits and hyphens in its name")
    if name in CRITERIA:
        raise UserError(f"criterion {name}: there is one of this name; choose another")
    if needs_posterior is None or needs_gradient is None:
        from bayeslora_cli.bayes.recording import statistics_read  # imports torch

        try:
            read = statistics_read(function, [field.name for field in fields(ElementStatistics)])
        except (ValueError, AttributeError) as error:
            raise UserError(f"criterion {name}: {error}") from error
        if needs_posterior is None:
            needs_posterior = "sigma" in read
        if needs_gradient is None:
            needs_gradient = not read.isdisjoint(("sensitivity", "uncertainty"))
    CRITERIA[name] = CriterionEntry(
        implementation=function, needs_posterior=needs_posterior, needs_gradient=needs_gradient
    )
