"""Initial ranges of B-LoRA's quantizers, measured on the rows of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from bayeslora_cli.execution.compilation import uncompiled
from bayeslora_cli.methods.blora.gates import BASE, RANGES, SIGNED
from bayeslora_cli.methods.blora.operands import FLOAT, OperandPublisher, publisher_of
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.kernels.quantize import SMALLEST_RANGE

FIRST_SINGULAR_RANGE = 0.02
"""Value used for a singular value of 0 while ranges are measured, and its own initial range."""


@torch.no_grad()
def measure(network: Network, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Measure the smallest and largest elements of each layer's x, x A', x A' diag(E): (n, 3, 2).

    The passes run at the mean, without dropout or quantizers. Singular values of 0 are replaced by
    `FIRST_SINGULAR_RANGE`: with 0, x A' diag(E) would have no range. The extremes are over all
    batches; without any batch they are infinity and its negative.
    """
    operands, bank, module = publisher_of(network), network.bank, network.module
    if not batches:
        ends = torch.tensor((inf, -inf), device=bank.theta.device)
        return ends.expand(len(operands.layers), 3, 2)
    singular, mode, training = bank.singular_values(bank.theta), operands.mode, module.training
    kept = singular.clone()
    module.eval()
    operands.mode = FLOAT
    for layer in operands.layers:
        layer.observed_extremes = []
    with uncompiled(), bank.at_mean():
        singular.copy_(torch.where(singular == 0, FIRST_SINGULAR_RANGE, singular))
        bank.publish()
        for batch in batches:
            network.logits(batch)
    extremes = torch.stack([layer.extremes() for layer in operands.layers])
    for layer in operands.layers:
        layer.observed_extremes = None
    operands.mode = mode
    module.train(training)
    singular.copy_(kept)
    bank.publish()
    return extremes


@torch.no_grad()
def calibrate(operands: OperandPublisher, flat: Tensor, extremes: Tensor, good: Tensor) -> None:
    """Set the ranges in a flat buffer (N,) to the largest absolute elements.

    A singular value of 0 counts as `FIRST_SINGULAR_RANGE`.

    Args:
        extremes: the result of `measure`.
        good: a scalar bool; if it is false or a range is not finite, nothing changes.
    """
    own = operands.parameters
    ranges, signed = own.in_buffer(RANGES, flat), own.in_buffer(SIGNED, flat)
    assert ranges is not None
    assert signed is not None
    found = torch.empty_like(ranges)
    places = {name: index for index, name in enumerate(operands.plan.operands)}
    for group in operands.bank.groups:
        members = list(group.members)
        found[members, places["A"]] = group.view_a(flat).abs().amax((1, 2))
        found[members, places["B"]] = group.view_b(flat).abs().amax((1, 2))
    e = operands.bank.singular_values(flat).abs()
    found[:, places["E"]] = torch.where(e == 0, FIRST_SINGULAR_RANGE, e).amax(1)
    for place, name in enumerate(("x", "a", "h")):
        found[:, places[name]] = extremes[:, place].abs().amax(1)
    if operands.plan.base:
        weights = [layer.base_layer.dense() for layer in operands.layers]
        found[:, places[BASE]] = torch.stack([w.abs().amax().float() for w in weights])
    finite = good & found.isfinite().all()
    ranges.copy_(torch.where(finite, found.clamp_min(SMALLEST_RANGE).log(), ranges))
    # only x may be unsigned: weights are always signed, and a or h lack negative elements by chance
    is_signed = (extremes[:, 0, 0] < 0).to(signed.dtype)
    signed[:, places["x"]] = torch.where(finite, is_signed, signed[:, places["x"]])
