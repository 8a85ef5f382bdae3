"""The first ranges of B-LoRA's quantizers, measured on the rows of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from bayeslora_cli.execution.compilation import uncompiled
from bayeslora_cli.methods.blora.gates import BASE, FLOAT, Gates
from bayeslora_cli.methods.blora.layer import E_FLOOR
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.kernels.quantize import SMALLEST_RANGE


@torch.no_grad()
def measure(network: Network, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Smallest and largest elements of the layers' x, x A' and x A' diag(E): (n, 3, 2).

    At the mean, without dropout or quantizers, and with the singular values that are 0 at
    `E_FLOOR`: 0 would give the last of them no range. Over all batches; of none: infinity and its
    negative.
    """
    gates, bank, module = network.gates, network.bank, network.module
    assert gates is not None
    if not batches:
        ends = torch.tensor((inf, -inf), device=bank.theta.device)
        return ends.expand(len(gates.layers), 3, 2)
    singular, mode, training = bank.singular_values(bank.theta), gates.mode, module.training
    kept = singular.clone()
    module.eval()
    gates.mode = FLOAT
    for layer in gates.layers:
        layer.seen = []
    with uncompiled(), bank.at_mean():
        singular.copy_(torch.where(singular == 0, E_FLOOR, singular))
        bank.publish()
        for batch in batches:
            network.logits(batch)
    seen = torch.stack([layer.extremes() for layer in gates.layers])
    for layer in gates.layers:
        layer.seen = None
    gates.mode = mode
    module.train(training)
    singular.copy_(kept)
    bank.publish()
    return seen


@torch.no_grad()
def calibrate(gates: Gates, flat: Tensor, seen: Tensor, good: Tensor) -> None:
    """Set the ranges to the largest elements, in a flat buffer (N,); an E of 0 is `E_FLOOR`.

    Args:
        seen: by `measure`.
        good: a scalar bool; nothing changes where it is false or a range is not finite.
    """
    ranges, signed = gates.in_buffer("ranges", flat), gates.in_buffer("signed", flat)
    assert ranges is not None
    assert signed is not None
    found = torch.empty_like(ranges)
    places = {name: index for index, name in enumerate(gates.plan.operands)}
    for group in gates.bank.groups:
        members = list(group.members)
        found[members, places["A"]] = group.view_a(flat).abs().amax((1, 2))
        found[members, places["B"]] = group.view_b(flat).abs().amax((1, 2))
    e = gates.bank.singular_values(flat).abs()
    found[:, places["E"]] = torch.where(e == 0, E_FLOOR, e).amax(1)
    for place, name in enumerate(("x", "a", "h")):
        found[:, places[name]] = seen[:, place].abs().amax(1)
    if gates.plan.base:
        weights = [layer.base_layer.weight for layer in gates.layers]
        found[:, places[BASE]] = torch.stack([w.abs().amax().float() for w in weights])  # type: ignore[operator]
    finite = good & found.isfinite().all()
    ranges.copy_(torch.where(finite, found.clamp_min(SMALLEST_RANGE).log(), ranges))
    # weights are signed whatever they are; a or h without a negative element is chance
    is_signed = (seen[:, 0, 0] < 0).to(signed.dtype)
    signed[:, places["x"]] = torch.where(finite, is_signed, signed[:, places["x"]])
