"""The memory of a run with other ways to save it: recomputation, base precision, shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, RECOMPUTED, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.base_weights.quantized_linear import (
    QuantizedLinear,
    quantize_only_weights,
    quantizing_rows,
)
from bayeslora_cli.models.sharding.divide import blocks_of
from bayeslora_cli.training.memory.estimate import distinct_bytes, estimate

REPRESENTATIVE = next(n for n, e in BASE_PRECISIONS.items() if e.quantized and not e.packages)
"""A base precision that needs no further package; the others have the same operators."""
SHARDED = 1.2
"""Time of a step on divided weights, relative to one on whole ones: 1.21 for Qwen2.5-32B's shape in
bf16, on two as on four H200s (docs/performance.md)."""
GATHERED = 3
"""Blocks whose divided weights are whole at the same time: one computes, one is gathered, and one
lies in the buffer of the exchange. Estimates with it were 1% above the peaks of those steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """A combination of options that save memory, and what a step then takes on each process."""

    gradient_checkpointing: str
    base_precision: str | None
    shard: bool
    bytes: int

    @property
    def cost(self) -> float:
        """Time of a step, relative to the one that saves nothing.

        A precision that makes steps faster counts as equal: it changes what is computed.
        """
        base = self.base_precision
        stored = 1.0 if base is None else max(1.0, BASE_PRECISIONS[base].step_time)
        return RECOMPUTED[self.gradient_checkpointing] * stored * (SHARDED if self.shard else 1)

    def flags(self) -> str:
        """Write the options as they are typed; empty: none."""
        found = []
        if self.gradient_checkpointing != "off":
            found.append(f"--gradient-checkpointing {self.gradient_checkpointing}")
        if self.base_precision is not None:
            found.append(f"--base-precision {self.base_precision}")
        return " ".join([*found, *(["--shard"] * self.shard)])


def alternatives(
    config: RunConfig,
    build: Callable[[RunConfig], Network],
    *,
    batch: Mapping[str, Tensor],
    device: torch.device,
    processes: int,
) -> list[Alternative]:
    """Estimate the peak of a step for every combination, the fastest first.

    Args:
        build: makes a network on the meta device.
        batch, device: as for `estimate`.
        processes: number of processes that weights are divided among.
    Returns:
        [] if the pass cannot run on fake tensors.
    """
    found = []
    own, forms = config.base_precision, _forms(device)
    quantizing = {n: form for n, form in forms.items() if form.exact is not None}
    others = {n: form for n, form in forms.items() if form.exact is None}
    for what, members in product(RECOMPUTED, (None, *filter(None, (others, quantizing)))):
        base = None if members is None else own if own in members else REPRESENTATIVE
        wanted = replace(config, gradient_checkpointing=what, base_precision=base)
        try:
            network = build(wanted)
        except ModelError:  # these layers cannot be quantized, or nothing is recomputed
            continue
        if members is not None and base not in members:  # compute as they do
            quantize_only_weights(quantizing_rows(network.module))
        needed = estimate(network, wanted, batch=batch, device=device, whole_step=True)
        if needed.peak is None:
            return []
        if members is None:
            found += _with_shards(network, what, None, needed.peak, 0, processes)
            continue
        stored = _stored(network)
        for name, form in members.items():
            more = sum(_size(form, *shape) for shape in stored) - needed.stored
            found += _with_shards(network, what, name, needed.peak + more, more, processes)
    return sorted(found, key=lambda x: (x.cost, x.base_precision is not None, x.bytes))


def _with_shards(
    network: Network, what: str, base: str | None, whole: int, more: int, processes: int
) -> list[Alternative]:
    """Make the combination on whole weights and the one on divided weights.

    Args:
        whole: bytes of a step on whole weights.
        more: bytes of the blocks' weights besides those that `network` has.
    """
    blocks = [
        distinct_bytes(p for p in block.parameters() if not p.requires_grad)
        for block in blocks_of(network.module)
    ]
    of_blocks = sum(blocks) + more
    largest = max(blocks, default=0) + more // max(1, len(blocks))
    divided = whole - of_blocks + of_blocks // processes + min(GATHERED, len(blocks)) * largest
    return [
        Alternative(gradient_checkpointing=what, base_precision=base, shard=shard, bytes=size)
        for shard, size in ((False, whole), (True, divided))
    ]


def _stored(network: Network) -> list[tuple[int, int]]:
    """Return the shapes (out, in) of all quantized weights."""
    return [
        (form.out_features, form.in_features)
        for form in network.module.modules()
        if isinstance(form, QuantizedLinear)
    ]


def _forms(device: torch.device) -> dict[str, type[QuantizedLinear]]:
    """Return the forms that quantize and that a device can compute with."""
    found = {n: implementation(e.implementation) for n, e in BASE_PRECISIONS.items() if e.quantized}
    if device.type != "cuda":
        return found
    has = torch.cuda.get_device_capability(device)
    return {n: f for n, f in found.items() if (f.least_capability or has) <= has}


def _size(form: type[QuantizedLinear], height: int, width: int) -> int:
    """Return the bytes of a weight (out, in)."""
    sizes = form.layout(height, width).values()
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in sizes)


def cheapest(found: Sequence[Alternative], room: int, *, shards: bool) -> Alternative | None:
    """Return the fastest combination that fits; None: there is none.

    Args:
        room: bytes of the device.
        shards: whether there are several processes.
    """
    return next((x for x in found if x.bytes <= room and (shards or not x.shard)), None)
