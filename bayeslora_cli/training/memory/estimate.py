"""Estimates the memory of a run from shapes: no weights are read, nothing is trained.

`build_network` makes the network on torch's meta device. Its forward pass runs on fake tensors,
which have a device, so that torch chooses the same kernels, but no memory.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.decoder_blocks import inside_mlps
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import JointLinear, LowRankLinear
from bayeslora_cli.models.adapters.published_factors import padded_rank
from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear
from bayeslora_cli.models.kernels.low_rank import split_linear
from bayeslora_cli.training.memory.live_bytes import LiveBytes

WORKSPACE = 2**25
"""Bytes that cuBLAS works with on a GPU."""

logger = logging.getLogger("bayeslora")
fake_log = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Sizes of a run. At a step's peak, temporary tensors are added to the sum of the bytes."""

    parameters: int
    """Elements of the backbone with its head, without the adapters."""
    trainable: int
    """Trained elements at the initial rank, the head's included."""
    matrices: tuple[tuple[str, int, int], ...]
    """Adapted matrices in the model's order: name, number of inputs, number of outputs."""
    weights: int
    """Bytes of the frozen weights and the backbone's buffers, in the run's precision."""
    trained: int
    """Bytes of the bank, which holds all trained parameters, the optimizer and the allocator."""
    activations: int | None
    """Bytes that a forward pass keeps for the backward pass; None: it cannot run on fake tensors.
    With gradient checkpointing, what is recomputed is not counted, nor what `selective` keeps."""
    peak: int | None = None
    """Bytes at a step's peak, temporary tensors included; None: not asked for, or not known."""
    stored: int = 0
    """Bytes of the quantized weights among `weights`."""


def estimate(
    network: Network,
    config: RunConfig,
    *,
    batch: Mapping[str, Tensor],
    device: torch.device,
    whole_step: bool = False,
) -> Estimate:
    """Count the bytes that a run keeps in memory.

    Args:
        network: made by `build_network` on the meta device.
        config: has its final schedule.
        batch: the largest micro-batch, on the CPU; of all tensors but `row_offsets` only shape and
            type count.
        device: the run's device; attention keeps other tensors on a CPU than on a GPU.
        whole_step: whether to run the backward pass too, for the peak.
    """
    bank = network.bank
    weights = [*network.module.parameters(), *network.module.buffers()]
    network.module.train()
    with FakeTensorMode(), _one_message():
        factors, frozen = _factors(network, device)
        if network.operands is not None:
            network.operands.publish_shapes(device)
        activations, passing = _passed_bytes(
            network, batch, device, factors, frozen, whole_step=whole_step
        )
        state = _state(config, network, device)
    banked = [t for t in vars(bank).values() if isinstance(t, Tensor)]
    adapters = sum(s.stop - s.offset for s in bank.segments.values() if s.role == "adapter")
    held = distinct_bytes(weights, but=banked) + _halves(network, config, device)
    trained = distinct_bytes([*banked, *state])
    peak: int | None = None
    if passing is not None:
        peak = held + trained + distinct_bytes(factors) + passing
        peak += WORKSPACE * (device.type == "cuda")
    return Estimate(
        parameters=_weights(network.module) - adapters,
        trainable=bank.trainable(),
        matrices=tuple(
            (name, layer.lora_A.shape[1], layer.lora_B.shape[0])
            for name, layer in network.adapters.items()
        ),
        weights=held,
        # twice the factors: as much again for their gradients
        trained=trained + 2 * distinct_bytes(factors),
        activations=activations,
        peak=peak,
        stored=distinct_bytes(
            tensor
            for form in network.module.modules()
            if isinstance(form, QuantizedLinear)
            for tensor in form.stored()
        ),
    )


def _passed_bytes(
    network: Network,
    batch: Mapping[str, Tensor],
    device: torch.device,
    factors: Sequence[Tensor],
    frozen: Sequence[Tensor],
    *,
    whole_step: bool,
) -> tuple[int | None, int | None]:
    """Count what a step's passes keep and need; call under a FakeTensorMode.

    Args:
        factors, frozen: what `_factors` returned.
    Returns:
        Bytes that a forward pass keeps, and those that both passes add at their peak; None: not
        asked for, or an operation needs a value or has no fake kernel.
    """
    activations = passing = None
    try:
        logits, own, inputs = _fake(network, batch, device)
        loss, known = network.objective.loss, [*own, *frozen]
        activations = saved_bytes(logits, loss, [*known, *factors], inputs)
        if whole_step:

            def then(found: Tensor) -> None:
                value = loss(found, inputs)
                del found  # as in a step
                value.backward()  # type: ignore[no-untyped-call]

            # blocks that are recomputed look for their weights in the backward pass
            step = partial(logits, inputs, then)
            passing = peak_bytes(step, [*known, *inputs.values()], factors)
    except (RuntimeError, ModelError) as error:
        what = "the activations" if activations is None else "the peak"
        logger.info("no estimate of %s: %s", what, str(error).partition("\n")[0])
    return activations, passing


def _halves(network: Network, config: RunConfig, device: torch.device) -> int:
    """Return the bytes of the halves that a GPU keeps beside weights of fp32."""
    if config.precision != "fp32" or network.divided:
        return 0
    own = inside_mlps(network.module)
    layers = (m for m in network.adapters.values() if type(m) is LowRankLinear and id(m) not in own)
    forms = (m.base_layer for m in layers if type(m.base_layer) is DenseLinear)
    weights = (form.dense() for form in forms)
    return sum(4 * w.numel() for w in weights if split_linear.is_able(w, device))


def _weights(module: nn.Module) -> int:
    """Count the weights of a module, also those that are stored as something else."""
    forms = [m for m in module.modules() if isinstance(m, AdaptedLinear) and m.stored()]
    stored = {id(tensor) for form in forms for tensor in form.stored()}
    plain = sum(p.numel() for p in module.parameters() if id(p) not in stored)
    return plain + sum(form.in_features * form.out_features for form in forms)


def distinct_bytes(tensors: Iterable[Tensor], *, but: Iterable[Tensor] = ()) -> int:
    """Count the bytes of the tensors' storages, each once, without those of `but`."""
    excluded = {t.untyped_storage()._cdata for t in but}
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in excluded)


def saved_bytes(
    logits: Callable[[dict[str, Tensor]], Tensor],
    loss: Callable[[Tensor, dict[str, Tensor]], Tensor],
    own: Iterable[Tensor],
    batch: dict[str, Tensor],
) -> int:
    """Count the bytes that the forward pass of a training step keeps for its backward pass.

    Args:
        logits: runs the network on a batch.
        loss: takes its result, and the batch.
        own: the network's tensors; they are not counted, nor are those of the batch.
    """
    # keeps all storages alive: the address of a freed one would be used again
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss(logits(batch), batch)
    assert result.requires_grad
    return distinct_bytes(kept, but=[*own, *batch.values()])


def peak_bytes(step: Callable[[], Any], own: Iterable[Tensor], made: Iterable[Tensor]) -> int:
    """Return the bytes that a forward and backward pass adds at its peak.

    Args:
        step: runs both.
        own: the network's tensors and the batch; the gradients of those that are trained have their
            place.
        made: tensors whose gradients each pass makes.
    """
    known = [*own, *made]
    for tensor in own:
        if tensor.requires_grad:
            tensor.grad = torch.zeros_like(tensor)
            known.append(tensor.grad)
    with LiveBytes(known) as live:
        step()
    found: int = live.peak
    return found


def _factors(network: Network, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Give a meta network's layers the factors of a training step; call under a FakeTensorMode.

    Returns:
        The factors, and the joint layers' frozen tensors.
    """
    dtype = network.compute_dtype
    joined = {id(layer) for joint in network.joints for layer in joint.layers}
    owners = [layer for layer in network.adapters.values() if id(layer) not in joined]
    factors, frozen = [], []
    units: list[tuple[LowRankLinear | JointLinear, tuple[LowRankLinear, ...]]]
    units = [*((x, (x,)) for x in owners), *((x, x.layers) for x in network.joints)]
    for owner, layers in units:
        rank, width = layers[0].lora_A.shape
        height = sum(layer.out_features for layer in layers)
        rank = padded_rank(len(layers) * rank, dtype, device)
        owner.down = torch.empty(rank, width, dtype=dtype, device=device, requires_grad=True)
        owner.up = torch.empty(height, rank, dtype=dtype, device=device, requires_grad=True)
        factors += [owner.down, owner.up]
    # joints are not modules of the network: `_fake` does not reach their tensors
    for joint in network.joints:
        for own in (joint.base_layer._parameters, joint.base_layer._buffers):
            for name, x in own.items():
                if x is not None:
                    fake = torch.empty(x.shape, dtype=x.dtype, device=device)
                    own[name] = nn.Parameter(fake, requires_grad=False)
                    frozen.append(fake)
    return factors, frozen


class _Pass(nn.Module):
    """A network's forward pass as a module, whose tensors `functional_call` can replace."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module = network.module
        self.run = network.logits

    def forward(self, batch: dict[str, Tensor], then: Callable[[Tensor], Any] | None) -> Any:
        return self.run(batch) if then is None else then(self.run(batch))


@contextmanager
def _one_message() -> Iterator[None]:
    """Keep torch from printing the traceback of an operation that has no fake kernel.

    The experts of a Mixtral in fp32 are one: the line about the missing estimate says it.
    """
    before, fake_log.disabled = fake_log.disabled, True
    try:
        yield
    finally:
        fake_log.disabled = before


def _fake(
    network: Network, batch: Mapping[str, Tensor], device: torch.device
) -> tuple[Callable[..., Any], list[Tensor], dict[str, Tensor]]:
    """Make a forward pass and a batch on `device`; call under a FakeTensorMode.

    Returns:
        The forward pass, which takes a batch and a function that runs on its result while the
        tensors are in their places; the network's tensors that it uses; and the batch.
    """
    # the layers have their operands already
    whole = _Pass(replace(network, operands=None))
    own = {
        name: torch.empty(t.shape, dtype=t.dtype, device=device, requires_grad=t.requires_grad)
        for name, t in (*whole.named_parameters(), *whole.named_buffers())
    }
    # attention on a CPU reads where rows begin
    inputs = {
        name: value
        if name == "row_offsets" and device.type == "cpu"
        else torch.zeros(value.shape, dtype=value.dtype, device=device)
        for name, value in batch.items()
    }

    def logits(inputs: dict[str, Tensor], then: Callable[[Tensor], Any] | None = None) -> Any:
        return functional_call(whole, own, (inputs, then))

    return logits, list(own.values()), inputs


def _state(config: RunConfig, network: Network, device: torch.device) -> list[Tensor]:
    """Make the tensors of optimizer and allocator besides the bank; call under a FakeTensorMode.

    The run's own classes make them, so that no list here can become outdated. Their bank is fake,
    since torch's fused AdamW refuses the meta device.
    """
    fake = copy.copy(network.bank)
    for name, tensor in vars(fake).items():
        if isinstance(tensor, Tensor):
            setattr(fake, name, torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
    found = [*build_optimizer(config, fake, 1, torch.Generator()).tensors().values()]
    method = find_method(config.method)
    allocator = method.allocator(config, replace(network, bank=fake), torch.Generator())
    return found if allocator is None else [*found, *allocator.tensors().values()]
