"""Chooses the form of the frozen weights that `--base-precision` names, and applies it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, implementation
from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.backbones.fingerprint import combined, digest
from bayeslora_cli.models.backbones.targets import head_modules, quantizable
from bayeslora_cli.models.base_weights.quantized_linear import FrozenLinear, QuantizedLinear
from bayeslora_cli.models.base_weights.streaming import Streaming


def check_packages(name: str | None) -> None:
    """Check that the packages of a base precision are installed.

    Raises:
        ModelError: one is missing.
    """
    if name is None:
        return
    entry = BASE_PRECISIONS[name]
    for package in entry.packages:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"--base-precision {name}: needs the package {package}: "
                f"pip install 'bayeslora[{entry.extra}]'"
            )


def base_form(
    name: str | None, dtype: torch.dtype, device: torch.device
) -> type[QuantizedLinear] | None:
    """Return the form that stores the frozen weights; None: they are dense, in the run's precision.

    Args:
        name: the value of --base-precision.
        dtype: type of the computation.
        device: where the weights will be.
    Raises:
        ModelError: a package is missing, or the GPU cannot compute with such weights.
    """
    if name is None:
        return None
    check_packages(name)
    form: type[QuantizedLinear] = implementation(BASE_PRECISIONS[name].implementation)
    if form.of_itself == dtype:
        return None
    if device.type == "cuda" and form.least_capability is not None:
        found = torch.cuda.get_device_capability(device)
        if found < form.least_capability:
            wanted, has = (".".join(map(str, x)) for x in (form.least_capability, found))
            raise ModelError(
                f"--base-precision {name}: {torch.cuda.get_device_name(device)} cannot multiply "
                f"{name} numbers (compute capability {has}, needs {wanted}); choose int8 or nf4"
            )
    return form


class BaseWeights:
    """The frozen weights of one network, from the reading of the checkpoint to its layers.

    With --base-precision all linear layers of the blocks are quantized, adapted or not.
    """

    def __init__(
        self,
        name: str | None,
        dtype: torch.dtype,
        device: torch.device,
        *,
        head: bool,
        divided: bool = False,
    ) -> None:
        """Choose the form.

        Args:
            name: the value of --base-precision; None: dense weights in the run's precision.
            dtype: type of the computation.
            head: whether the backbone gets a head, which is trained.
            divided: whether the weights will be divided among processes.
        Raises:
            ModelError: raised by `base_form`.
        """
        self.name, self.dtype, self.device, self.head = name, dtype, device, head
        self.divided = divided
        self.form = base_form(name, dtype, device)
        # exports of a run read in fp32 what the run read in bf16
        self._exactness = torch.float32 if head else torch.bfloat16
        self._digests: list[bytes] = []
        self._chosen: set[str] = set()
        self.streaming: Streaming | None = None
        """Quantizes weights while they are read; None: they are dense, or none are read."""
        if self.form is not None and device.type != "meta":
            self.streaming = Streaming(self.form, device, self._layers, self._note)

    def fingerprint(self, tensors: Iterable[Tensor]) -> str:
        """Return the `fingerprint` of the checkpoint: of these tensors, and those quantized."""
        read = (tensor for tensor in tensors if not tensor.is_meta)
        return combined([*self._digests, *(digest(tensor, self._exactness) for tensor in read)])

    def choose(self, module: Any, head: Sequence[str]) -> None:
        """Choose the layers to quantize; `make` and `freeze` need it.

        Raises:
            ModelError: the form cannot hold a layer of this shape.
        """
        if self.form is None:
            return
        self._chosen = set(quantizable(module, head))
        for name in self._chosen:
            form = self.form
            why = form.refusal(*_shape(module.get_submodule(name)))
            if why is not None:
                raise ModelError(f"--base-precision {self.name}: {name} {why}")

    def make(self, name: str, layer: nn.Module) -> AdaptedLinear:
        """Return the form of a layer that is adapted."""
        if self.form is None or name not in self._chosen:
            return DenseLinear(layer)
        made = self.form(layer, self.dtype, self.device)
        made.divided = self.divided
        return made

    def freeze(self, module: Any, adapted: Iterable[str]) -> None:
        """Replace the layers that are quantized and not adapted."""
        for name in sorted(self._chosen - set(adapted)):
            parent, _, last = name.rpartition(".")
            layer = FrozenLinear(self.make(name, module.get_submodule(name)))
            setattr(module.get_submodule(parent), last, layer)

    def _layers(self, module: Any) -> list[nn.Module]:
        head = head_modules(module) if self.head else ()
        self.choose(module, head)
        return [module.get_submodule(name) for name in sorted(self._chosen)]

    def _note(self, weight: Tensor) -> None:
        self._digests.append(digest(weight, self._exactness))


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and of inputs."""
    assert isinstance(layer.weight, Tensor)
    height, width = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.t().shape
    return height, width
