"""Hard-concrete gates (Louizos et al., ICLR 2018): random numbers in [0, 1], often 0 or 1 exactly.

One logit phi a gate. Nothing here reads a device's value, products' gradients included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAU = 2 / 3  # temperature; with gamma and zeta Louizos et al., section 4, and Bayesian Bits
GAMMA, ZETA = -0.1, 1.1  # ends of the stretched interval
START = 6.0  # phi of a new gate: open with probability 0.9995
MARGIN = 1e-6  # of u, uniform in (0, 1), whose logit must be finite
SHIFT = -TAU * math.log(-GAMMA / ZETA)  # 1.5986
CLOSED = 0.34  # a gate is used as closed from this probability of it on (Bayesian Bits)
THRESHOLD = math.log((1 - CLOSED) / CLOSED) - SHIFT  # -0.9353


def sampled(phi: Tensor, u: Tensor) -> Tensor:
    """z = clamp(sigmoid((logit(u) + phi) / tau) (zeta - gamma) + gamma, 0, 1), as in training.

    Args:
        u: uniform in (`MARGIN`, 1 - `MARGIN`), of phi's shape.
    """
    stretched = ((u.logit() + phi) / TAU).sigmoid() * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def probability(phi: Tensor) -> Tensor:
    """q = P(z > 0) = sigmoid(phi - tau ln(-gamma / zeta))."""
    return (phi + SHIFT).sigmoid()


def is_open(phi: Tensor) -> Tensor:
    """Whether a gate is used as open: if and only if 1 - q < 0.34."""
    return phi > THRESHOLD


def nested(gates: Tensor) -> Tensor:
    """Products z_1, z_1 z_2, … along the last axis: a gate that closes closes all behind it.

    torch's own cumulative product asks the device for zeros to take its gradient.
    """
    products: list[Tensor] = []
    for gate in gates.unbind(-1):
        products.append(products[-1] * gate if products else gate)
    return torch.stack(products, -1) if products else gates
