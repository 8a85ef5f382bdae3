"""The network: a backbone made ready for training by a method."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.backbones.loading import unread
from bayeslora_cli.models.kernels.cpu_dropout import cpu_dropout
from bayeslora_cli.tasks.objectives.objective import BESIDE_INPUTS, Objective


class PassOperands(Protocol):
    """What a method gives to the layers before each pass in place of their parameters."""

    quantized: frozenset[str]
    """Operands whose quantizers are in use; an export format that has no place for some drops
    those."""

    @property
    def branch(self) -> Hashable:
        """What decides, besides inputs and tensors, which kernels an evaluation runs."""

    def publish_operands(self, *, training: bool) -> None:
        """Give every layer its operands for the next pass; `training`: draw what is random."""

    def publish_shapes(self, device: torch.device) -> None:
        """Give every layer empty operands on `device`, of the phase that keeps most for the
        backward pass: what a memory estimate runs with, under a FakeTensorMode."""

    def effective(self, flat: Tensor) -> Tensor:
        """Parameters (N,) as an evaluation computes with them: rounded, where it rounds them."""

    def effective_base(self, flat: Tensor) -> dict[str, Tensor]:
        """Frozen weights (out, in) that an evaluation rounds, as it does, by layer name."""

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Bits of each quantized operand, by matrix, of parameters (N,)."""


@dataclass(kw_only=True, slots=True)
class Network:
    """A backbone made ready for training."""

    module: Any
    """transformers' sequence classifier, its adapted layers replaced."""
    objective: Objective
    """What the logits are for."""
    bank: AdapterBank
    compute_dtype: torch.dtype
    """Of the backbone; the head's and the trained tensors' is fp32."""
    adapters: dict[str, LowRankLinear]
    """Adapted layers by name, in the model's order."""
    head: tuple[str, ...]
    """Names of the modules that make up the head."""
    drawn: dict[str, Tensor]
    """fp32 copies of frozen tensors that the checkpoint lacked and this run drew."""
    backbone_sha256: str
    """`fingerprint` of what the checkpoint held, the head left out; empty without weights."""
    operands: PassOperands | None = None
    """Of a method whose layers compute with others than their published factors."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward pass: (batch, outputs) in fp32. Labels are never passed to the backbone."""
        inputs = {name: value for name, value in batch.items() if name not in BESIDE_INPUTS}
        if self.operands is not None:
            self.operands.publish_operands(training=self.module.training)
        device = inputs["input_ids"].device
        with unread(device), cpu_dropout(device):
            logits: Tensor = self.module(**inputs).logits
        return logits.float()

    @property
    def branch(self) -> Hashable:
        """What besides its inputs and tensors decides which kernels an evaluation runs."""
        return None if self.operands is None else self.operands.branch

    def effective(self, flat: Tensor) -> Tensor:
        """Parameters (N,) as an evaluation computes with them."""
        return flat if self.operands is None else self.operands.effective(flat)

    def effective_base(self, flat: Tensor) -> dict[str, Tensor]:
        """Frozen weights that an evaluation does not take as they are, by layer name."""
        return {} if self.operands is None else self.operands.effective_base(flat)

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Bits of each quantized operand, by matrix: empty dictionaries where none is."""
        return [{} for _ in self.adapters] if self.operands is None else self.operands.widths(flat)

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace a frozen tensor that the checkpoint lacks by the one another process drew."""
        owner, _, last = name.rpartition(".")
        layer = self.adapters.get(owner)
        module = self.module.get_submodule(owner) if layer is None else layer.base_layer
        if layer is not None and last == "weight":
            layer.base_layer.replace_dense(layer.base_layer.oriented(value))
        else:
            target = getattr(module, last)
            assert isinstance(target, Tensor)
            with torch.no_grad():
                target.copy_(value)
        self.drawn[name] = value
