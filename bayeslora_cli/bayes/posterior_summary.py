"""Summarises a trained posterior: whether sigma reflects the data, or only the settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora_cli.bayes.criteria import ElementStatistics, magnitude, snr
from bayeslora_cli.bayes.ivon import hessian_over_initial
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank_layout import BankLayout
from bayeslora_cli.tasks.metrics import spearman

NEAR = 0.1
"""The Hessian counts as unchanged if h/h0 of nine elements in ten differs from 1 by at most this.
sigma^2 is 1/(ess h): a tenth more h changes it as a tenth more training examples would."""
FLAT = 1.1
"""sigma counts as almost constant if its quantiles have at most this ratio: (1.1 / 0.9)^(1/2), the
same spread as `NEAR` allows, around any value of the Hessian."""
SAME_ORDER = 0.99
"""snr and magnitude count as ranking alike from this rank correlation on."""


def summarise(
    layout: BankLayout,
    mean: Tensor,
    sigma: Tensor,
    mask: Tensor,
    config: RunConfig,
    training_rows: int,
) -> dict[str, Any]:
    """Report how far the Hessian h has moved from its initial value h0, and what follows.

    Only kept elements count (those of kept triplets, the head and trained backbone weights): a
    pruned triplet does not affect predictions, and the posterior's file does not hold it.

    Args:
        layout: the bank's.
        mean, sigma, mask: (N,), (N,) and (n, r), of the run's evaluation `best_at_budget`; at the
            end of training, h and the triplets' scores have seen a few more steps.
        training_rows: number of training examples, which ess may depend on.
    Returns:
        For result.json: `hessian_over_h0`, quantiles of h/h0, h being 1/(ess sigma^2) - delta;
        `sigma_ratio`, the 95% quantile of sigma over the 5% one; `snr_magnitude_correlation`,
        Spearman's, of the scores of kept triplets (None: fewer than two, or the method has none);
        `note`, one sentence if the posterior has learnt next to nothing, else None.
    """
    low, median, high = _quantiles(_kept(layout, sigma, mask))
    # sigma falls as h rises: the high quantile of sigma gives the low one of h
    ratios = {
        name: hessian_over_initial(value, config, training_rows)
        for name, value in (("q05", high), ("median", median), ("q95", low))
    }
    summary = {
        "hessian_over_h0": ratios,
        "sigma_ratio": float(high / low),
        "snr_magnitude_correlation": _agreement(layout, mean, sigma, mask),
    }
    return {**summary, "note": _note(summary, config)}


def _kept(layout: BankLayout, flat: Tensor, mask: Tensor) -> Tensor:
    """Select elements of a flat buffer (N,), without pruned triplets and padding: (k,)."""
    keep = torch.zeros(flat.shape, dtype=torch.bool)
    for segment in layout.segments.values():
        if segment.stop <= layout.weights.stop:  # gates and ranges are points with every optimizer
            segment.view(keep).fill_(True)
    if layout.has_singular_values:
        kept = mask.bool().cpu()
        layout.singular_values(keep).copy_(kept)
        for group in layout.groups:
            members = kept[list(group.members)]  # (G, r)
            group.view_a(keep).copy_(members[:, :, None])
            group.view_b(keep).copy_(members[:, None, :])
    return flat.cpu()[keep]


def _quantiles(values: Tensor) -> tuple[float, float, float]:
    """Return the 5% quantile, the median and the 95% quantile."""
    # numpy's quantile: torch's accepts at most 2^24 elements
    low, median, high = np.quantile(values.numpy(), (0.05, 0.5, 0.95))
    return float(low), float(median), float(high)


def _agreement(layout: BankLayout, mean: Tensor, sigma: Tensor, mask: Tensor) -> float | None:
    """Return the rank correlation of the kept triplets' scores under snr and magnitude."""
    kept = mask.bool().cpu()
    if not layout.has_singular_values or kept.sum() < 2:
        return None
    end, order = layout.adapter_end, layout.order_of_scores()
    statistics = ElementStatistics(mean=mean[:end].cpu(), sigma=sigma[:end].cpu())
    scores = [layout.triplet_scores(score(statistics), order)[kept] for score in (snr, magnitude)]
    return spearman(*scores)


def _note(summary: dict[str, Any], config: RunConfig) -> str | None:
    """Return a note if the posterior has learnt next to nothing, else None."""
    low, high = summary["hessian_over_h0"]["q05"], summary["hessian_over_h0"]["q95"]
    reach = f"h/h0 {low:.3g} to {high:.3g}"
    if low >= 1 - NEAR and high <= 1 + NEAR:
        found = f"the Hessian has stayed near its initial value ({reach})"
    elif summary["sigma_ratio"] <= FLAT:
        found = f"the Hessian is nearly the same for all elements ({reach})"
    else:
        return None
    follows = ["sigma is almost constant"]
    agreement = summary["snr_magnitude_correlation"]
    if agreement is not None and agreement >= SAME_ORDER:
        follows.append(
            f"snr ranks the triplets as magnitude does (rank correlation {agreement:.3f})"
        )
    if config.criterion == "precision":
        follows.append("precision has next to nothing to rank them by")
    return (
        f"{found}: {', '.join(follows)}, and the predictive uncertainty is that of the settings "
        "(--hess-init, --ivon-beta2, --ess), not of the data; --preset learned-posterior has "
        "settings with which it learns"
    )
