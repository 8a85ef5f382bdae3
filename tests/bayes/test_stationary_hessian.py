"""Where IVON's Hessian comes to rest, as docs/evaluation.md states it, by the official formulas."""

from __future__ import annotations

import ivon
import pytest
import torch


@pytest.mark.parametrize(
    ("curvature", "deviation", "ess"),
    [(0.0, 1e-3, 1e6), (3.2e-5, 1e-3, 1e5), (3.2e-5, 1e-3, 1e3)],
    ids=["noise only", "both", "curvature"],
)
def test_mean_and_spread_at_rest(curvature, deviation, ess):
    """Of an element with curvature H whose gradient has the deviation s, h is at rest distributed
    as Gamma of mean H + (1 - beta2) ess s^2 / 2 and shape 1 + 2 H / ((1 - beta2) ess s^2)."""
    beta2, elements = 0.99, 4000
    noise_part = (1 - beta2) * ess * deviation**2
    mean, shape = curvature + noise_part / 2, 1 + 2 * curvature / noise_part
    generator = torch.Generator().manual_seed(0)
    h = torch.full((elements,), mean)
    for _ in range(500):
        noise = torch.randn(elements, generator=generator) / (ess * h).sqrt()
        gradient = curvature * noise + deviation * torch.randn(elements, generator=generator)
        h = ivon.IVON._new_hess("price", h, noise * gradient, None, slice(None), ess, beta2, 0.0)
    assert h.mean().item() == pytest.approx(mean, rel=0.06)
    assert (h.mean() / h.std()).square().item() == pytest.approx(shape, rel=0.12)
