"""Hard-concrete gates against their distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.methods.blora.gates import (
    MARGIN,
    SHIFT,
    THRESHOLD,
    is_open,
    nested,
    probability,
    sampled,
)


def test_constants():
    assert pytest.approx(1.5986, abs=5e-5) == SHIFT
    assert pytest.approx(-0.9353, abs=5e-5) == THRESHOLD


@pytest.mark.parametrize("phi", [-3.0, -0.9353, 0.0, 2.0])
def test_a_gate_is_not_zero_with_its_probability(phi):
    u = torch.linspace(MARGIN, 1 - MARGIN, 200_001, dtype=torch.float64)
    z = sampled(torch.full_like(u, phi), u)
    assert bool(((z >= 0) & (z <= 1)).all())
    expected = probability(torch.tensor(phi, dtype=torch.float64))
    assert float((z > 0).double().mean()) == pytest.approx(float(expected), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20))
def test_open_if_the_probability_of_zero_is_below_034(phi):
    closed = 1 / (1 + math.exp(phi - (2 / 3) * math.log(0.1 / 1.1)))  # P(z = 0)
    if abs(closed - 0.34) > 1e-6:
        assert bool(is_open(torch.tensor(phi))) == (closed < 0.34)
    assert bool(is_open(torch.tensor(-0.9352)))
    assert not bool(is_open(torch.tensor(-0.9354)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=6))
def test_nested_products_and_gradients(values):
    """torch's own in float64, zeros included, but without asking the device for them."""
    z = torch.tensor([values], dtype=torch.float64)
    weights = torch.arange(1.0, len(values) + 1, dtype=torch.float64)
    found = []
    for product in (nested, lambda z: z.cumprod(-1)):
        leaf = z.clone().requires_grad_()
        out = product(leaf)
        (out * weights).sum().backward()
        found.append((out.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


def test_nothing_nested():
    assert nested(torch.ones(3, 0)).shape == (3, 0)
