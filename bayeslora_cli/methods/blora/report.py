"""Reports a run's gates: ranks and widths, expected and at the thresholds, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.methods.blora.bit_operations import Cost, Sizes, cost, multiplications
from bayeslora_cli.methods.blora.gates import GateParameters
from bayeslora_cli.methods.blora.operands import publisher_of
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.backbones.targets import plain_products
from bayeslora_cli.runs.rank_report import FLOAT_BITS

RANKS_COLLAPSED_FROM = 0.95
"""Warn that the ranks have collapsed if at least this share of the matrices has rank 1."""
WIDTHS_COLLAPSED_UP_TO = 1.25
"""Warn that the widths have collapsed if the adapters cost at most this many times the bit
operations that they would at the narrowest width."""


def sizes_of(network: Network, bits: Sequence[dict[str, int]], mask: Tensor) -> list[Sizes]:
    """Return the sizes, rank and bit widths of each matrix, for counting bit operations."""
    return [
        Sizes(
            width=layer.lora_A.shape[1],
            height=layer.lora_B.shape[0],
            rank=int(rank),
            bits=found,
        )
        for layer, rank, found in zip(
            network.adapters.values(), mask.sum(1).tolist(), bits, strict=True
        )
    ]


def cost_of(network: Network, sizes: Sequence[Sizes]) -> Cost:
    """Return the cost of a network whose matrices have these sizes."""
    others = None
    if not network.objective.entry.head:  # a language model, whose output layer counts too
        others = FLOAT_BITS**2 * plain_products(network.module)
    return cost(sizes, publisher_of(network).parameters.rank, others)


def width_weights(network: Network, *, bop: bool) -> Tensor:
    """Return the penalty's weight of each gate over a width: (n, q, L - 1).

    The weight is 1. With `bop` it is the width that the gate opens times the multiplications of the
    operand, divided by the most of any operand (Bayesian Bits, section 2.3).
    """
    plan = publisher_of(network).plan
    if not bop or not plan.operands:
        return torch.ones(len(network.adapters), len(plan.operands), len(plan.ladder) - 1)
    counts = torch.tensor(
        [
            multiplications(m.lora_A.shape[1], m.lora_B.shape[0], m.rank, plan.operands)
            for m in network.adapters.values()
        ],
        dtype=torch.float32,
    )
    return (counts / counts.max())[..., None] * torch.tensor(plan.ladder[1:], dtype=torch.float32)


@torch.no_grad()
def gate_facts(
    network: Network, flat: Tensor, mask: Tensor, *, quantized: bool
) -> dict[str, float]:
    """Return the gates' entries for a line of metrics.jsonl; this reads from the device.

    Args:
        quantized: whether quantizers are already in use; else all operands count 32 bits.
    """
    gates = publisher_of(network).parameters
    bits = gates.widths(flat) if quantized else [{} for _ in network.adapters]
    sizes = sizes_of(network, bits, mask)
    found = cost_of(network, sizes)
    facts = {
        "rank": _mean([m.rank for m in sizes]),
        "expected_rank": float(gates.expected_ranks(flat).sum(1).mean()),
        "bits": mean_bits(bits),
    }
    reach = gates.expected_reach(flat)
    if reach is not None:
        ladder = torch.tensor(gates.plan.ladder, dtype=reach.dtype, device=reach.device)
        facts["expected_bits"] = float((ladder[0] + (reach * ladder.diff()).sum(-1)).mean())
    facts |= {
        "relative_bit_operations": found.adapter_relative,
        "relative_bit_operations_with_base": found.with_base_relative,
    }
    if found.model_relative is not None:
        facts["relative_bit_operations_of_model"] = found.model_relative
    return facts | {"storage_bytes": found.storage_bytes}


def gate_result(network: Network, flat: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return the gates' entries for result.json, from parameters (N,) and their mask (n, r)."""
    gates = publisher_of(network).parameters
    bits = gates.widths(flat)
    sizes = sizes_of(network, bits, mask)
    return {
        "gates_note": _collapsed(gates, sizes),
        "mean_rank": _mean([m.rank for m in sizes]),
        "mean_bits": mean_bits(bits),
        "bits": dict(zip(network.adapters, bits, strict=True)) if gates.plan.bits else None,
        "cost": cost_of(network, sizes).to_json(),
    }


def _collapsed(gates: GateParameters, sizes: Sequence[Sizes]) -> str | None:
    """Return a warning if nearly all gates over ranks, or over widths, have closed."""
    found = {}
    if gates.over_ranks and sum(m.rank == 1 for m in sizes) >= RANKS_COLLAPSED_FROM * len(sizes):
        found["--lambda-rank"] = "rank 1"
    if gates.over_widths:
        # judged by cost: a and E are so few numbers that their widths do not matter
        narrowest = gates.plan.ladder[0]
        floor = [replace(m, bits=dict.fromkeys(m.bits, narrowest)) for m in sizes]
        if sum(m.adapter() for m in sizes) <= WIDTHS_COLLAPSED_UP_TO * sum(
            m.adapter() for m in floor
        ):
            found["--lambda-quant"] = f"{narrowest} bits"
    if not found:
        return None
    return (
        f"nearly everything has collapsed to {' and '.join(found.values())}: "
        f"lower {' and '.join(found)}"
    )


def mean_bits(bits: Sequence[dict[str, int]]) -> float:
    """Return the mean width over all quantized operands; 32 if there are none."""
    return _mean([b for found in bits for b in found.values()] or [FLOAT_BITS])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
