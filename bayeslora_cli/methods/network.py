"""`Network`: a backbone that a method has made ready for training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.layer import JointLinear, LowRankLinear
from bayeslora_cli.models.backbones.input_limits import FORWARD_ERRORS, refuse_rows
from bayeslora_cli.models.backbones.loading import unread
from bayeslora_cli.models.kernels.cpu_dropout import cpu_dropout
from bayeslora_cli.tasks.objectives.objective import BESIDE_INPUTS, Objective


class PassOperands(Protocol):
    """Operands that a method gives the layers before each pass, instead of their parameters."""

    quantized: frozenset[str]
    """Operands whose quantizers are in use; an export format drops those that it cannot store."""

    @property
    def branch(self) -> Hashable:
        """Key of the kernels that an evaluation runs, besides its inputs and tensors."""

    def publish_operands(self, *, training: bool) -> None:
        """Give every layer its operands for the next pass; `training`: sample random gates."""

    def publish_shapes(self, device: torch.device) -> None:
        """Give every layer empty operands on `device`, of the phase that needs the most memory.

        The memory estimate runs with them under a FakeTensorMode.
        """

    def effective(self, flat: Tensor) -> Tensor:
        """Return parameters (N,) as an evaluation uses them, rounded if it quantizes them."""

    def effective_base(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the rounded frozen weights (out, in) by layer name; {}: none is quantized."""

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Return the bits of each quantized operand, by matrix, for parameters (N,)."""


@dataclass(kw_only=True, slots=True)
class Network:
    """A backbone that a method has made ready for training."""

    module: Any
    """The model of transformers, with its adapted layers replaced."""
    objective: Objective
    """Defines the loss, the predictions and the metrics of the logits."""
    bank: AdapterBank
    compute_dtype: torch.dtype
    """Type of the backbone's weights; the head and trained tensors are fp32."""
    adapters: dict[str, LowRankLinear]
    """Adapted layers by name, in the model's order."""
    joints: tuple[JointLinear, ...] = ()
    """Joint products of adapted layers that see the same input."""
    head: tuple[str, ...]
    """Names of the modules that make up the head."""
    packed: bool
    """Whether the rows of a batch go to the backbone one after the other, without padding."""
    drawn: dict[str, Tensor]
    """fp32 copies of frozen tensors that the checkpoint lacked and this run drew."""
    backbone_sha256: str
    """`fingerprint` of the checkpoint's tensors without the head; empty without weights."""
    divided: bool = False
    """Whether the blocks' frozen weights are divided among processes, which gather them in each
    pass: all processes must run as many passes."""
    operands: PassOperands | None = None
    """Operands of a method whose layers do not use the published factors; None: they do."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run a forward pass: what `Objective.forward` returns, in fp32, such as (batch, outputs).

        Labels never go to the backbone.

        Raises:
            ModelError: the backbone's own code refuses the batch.
        """
        inputs = {name: value for name, value in batch.items() if name not in BESIDE_INPUTS}
        if self.operands is not None:
            self.operands.publish_operands(training=self.module.training)
        device = inputs["input_ids"].device
        with unread(device), cpu_dropout(device):
            try:
                logits = self.objective.forward(self.module, inputs)
            except FORWARD_ERRORS as error:
                refuse_rows(self.module, error)
                raise
        return logits.float()

    def model_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the model's own forward pass, as users of its exports do, in fp32.

        Args:
            batch: inputs of the backbone, such as `input_ids` and `attention_mask` (b, w).
        Returns:
            (b, outputs), or (b, w, vocabulary) of a language model; of another model without a head
            its last states (b, w, width).
        """
        if self.operands is not None:
            self.operands.publish_operands(training=self.module.training)
        device = batch["input_ids"].device
        with unread(device), cpu_dropout(device):
            output = self.module(**batch)
        logits: Tensor = getattr(output, self.objective.entry.output)
        return logits.float()

    @property
    def branch(self) -> Hashable:
        """Key of the kernels that an evaluation runs, besides its inputs and tensors."""
        return None if self.operands is None else self.operands.branch

    def effective(self, flat: Tensor) -> Tensor:
        """Return parameters (N,) as an evaluation uses them."""
        return flat if self.operands is None else self.operands.effective(flat)

    def effective_base(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the frozen weights that an evaluation rounds, by layer name."""
        return {} if self.operands is None else self.operands.effective_base(flat)

    def widths(self, flat: Tensor) -> list[dict[str, int]]:
        """Return the bits of each quantized operand, by matrix; {} if none is quantized."""
        return [{} for _ in self.adapters] if self.operands is None else self.operands.widths(flat)

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace a frozen tensor that the checkpoint lacks, such as by another process's draw."""
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
