"""The network: a backbone made ready for training by a method."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.methods.blora.gates import FLOAT, Gates
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.backbones.loading import Labels, unread
from bayeslora_cli.models.kernels.cpu_dropout import cpu_dropout


@dataclass(kw_only=True, slots=True)
class Network:
    """A backbone made ready for training."""

    module: Any
    """transformers' sequence classifier, its adapted layers replaced."""
    labels: Labels
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
    gates: Gates | None = None
    """Over ranks and bit widths, of a method that learns them."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward pass: (batch, outputs) in fp32. Labels are never passed to the backbone."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.gates is not None:
            self.gates.dress(training=self.module.training)
        device = inputs["input_ids"].device
        with unread(device), cpu_dropout(device):
            logits: Tensor = self.module(**inputs).logits
        return logits.float()

    @property
    def branch(self) -> Hashable:
        """What besides its inputs and tensors decides which kernels an evaluation runs."""
        return None if self.gates is None else (self.gates.mode == FLOAT, self.gates.quantized)

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace a frozen tensor that the checkpoint lacks by the one another process drew."""
        owner, _, last = name.rpartition(".")
        module = self.module.get_submodule(owner)
        target = getattr(module.base_layer if owner in self.adapters else module, last)
        assert isinstance(target, Tensor)
        with torch.no_grad():
            target.copy_(value)
        self.drawn[name] = value


# ---- methods: what of a backbone is trained

LayerMaker = Callable[[nn.Module, int, float, torch.Generator], LowRankLinear]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How a backbone is made trainable."""

    layer: LayerMaker | None
    """Builds an adapted layer; None: the weights themselves are trained."""
    adaptive: bool
    """Whether ranks are allocated, and the orthogonality penalty applies."""
    gated: bool = False
    """Whether gates over ranks and bit widths are learned; its layers are `GatedLinear`."""
