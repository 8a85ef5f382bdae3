"""Quantizes a checkpoint's weights one by one, while transformers reads them.

transformers sets each weight on its module as soon as it is read, and reads the next one only then
if a quantizer is given. So a layer that quantizes what is set on it never lets two weights be in
memory as they were in the file.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bayeslora_cli.models.base_weights.quantized_linear import QuantizedLinear

METHOD = "bayeslora"
_MARKS = ("is_loaded_in_4bit", "is_loaded_in_8bit")

Chooser = Callable[[Any], Iterable[nn.Module]]
"""(module of transformers) -> its layers whose weights are quantized."""


def _give_back() -> None:
    """Have glibc return freed memory to the system: it keeps as much as a quarter of the model."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


class _Streamed(nn.Module):
    """What a layer's class derives from while its weight is read."""

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers marks what it has read, and draws what is not marked
        if name == "weight" and getattr(value, "_is_hf_initialized", False):
            by: Streaming = self.__dict__["streaming"]
            weight = value.detach().to(by.device)
            by.read(weight)
            weight = weight if isinstance(self, nn.Linear) else weight.t()
            self.__dict__["stored"] = by.form.quantize(weight.contiguous())
            value = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
            value._is_hf_initialized = True
            if by.device.type == "cpu":
                _give_back()
        super().__setattr__(name, value)


@register_quantization_config(METHOD)
class Streaming(QuantizationConfigMixin):  # type: ignore[misc]
    """The argument `quantization_config` of `from_pretrained`."""

    def __init__(
        self,
        form: type[QuantizedLinear],
        device: torch.device,
        chosen: Chooser,
        read: Callable[[Tensor], None],
    ) -> None:
        """Make it.

        Args:
            form: stores the weights.
            device: where they are quantized and kept.
            chosen: chooses the layers.
            read: is given each weight as it was read, before it is quantized.
        """
        super().__init__(quant_method=METHOD)
        self.form, self.device, self.chosen, self.read = form, device, chosen, read
        self.layers: list[nn.Module] = []
        self.model: Any = None

    def finish(self) -> None:
        """Make the layers those that they were, and forget in the model that this was here."""
        for layer in self.layers:
            layer.__dict__.pop("streaming")
            layer.__class__ = type(layer).__mro__[2]  # (own, _Streamed, the layer's)
        if self.model is not None:
            self.model.config.__dict__.pop("quantization_config", None)
            for module in self.model.modules():
                for name in ("hf_quantizer", "quantization_method", "is_quantized", *_MARKS):
                    module.__dict__.pop(name, None)
        self.layers, self.model = [], None


@register_quantizer(METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls around the reading of the weights."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        given: Streaming = self.quantization_config
        given.model, given.layers = model, list(given.chosen(model))
        for layer in given.layers:
            kind = type(layer)
            layer.__dict__["streaming"] = given
            layer.__class__ = type(kind.__name__, (_Streamed, kind), {})
            # read in this type, whatever the rest of the model is
            assert isinstance(layer.weight, Tensor)
            empty = torch.empty(layer.weight.shape, device="meta")
            layer.weight = nn.Parameter(empty, requires_grad=False)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        """Have transformers reserve no memory beforehand: it would be that of dense weights."""
        return 0.0

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True
