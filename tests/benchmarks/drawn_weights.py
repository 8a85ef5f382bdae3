"""Backbones with random weights by configuration, drawn on the device one layer after the other."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.base_weights.streaming import Streaming

STD = 0.02


def drawn(parameter: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers for a parameter: matrices are drawn, the weights of norms are 1."""
    found = torch.empty(parameter.shape, device=device, dtype=dtype)
    return found.normal_(std=STD) if found.dim() > 1 else found.fill_(1)


def drawn_backbone(
    config: RunConfig, *_: Any, dtype: torch.dtype, device: torch.device,
    streaming: Streaming | None = None, **__: Any,
) -> tuple[Any, tuple[str, ...], set[str]]:  # fmt: skip
    """Stand in for `load_backbone`: nothing is read, and quantized weights are never whole."""
    architecture = AutoConfig.from_pretrained(config.model)
    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(architecture)
    module.tie_weights()  # which the context above undoes
    if device.type == "meta":
        return module.to(device), (), set()
    for layer in [] if streaming is None else streaming.chosen(module):
        assert streaming is not None
        assert isinstance(layer, nn.Linear)
        layer.__dict__["stored"] = streaming.form.quantize(drawn(layer.weight, device, dtype))
    made: dict[int, nn.Parameter] = {}  # embeddings may be the output layer too
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            quantized = name == "weight" and "stored" in owner.__dict__
            if parameter is None or quantized:
                continue
            if id(parameter) not in made:
                values = drawn(parameter, device, dtype)
                made[id(parameter)] = nn.Parameter(values, requires_grad=False)
            owner._parameters[name] = made[id(parameter)]
    return module, (), set()
