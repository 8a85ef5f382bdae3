"""The files of an adapter in PEFT's format, and what they hold beside low-rank factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.config.catalogue import ObjectiveEntry
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.formats.format import kept_factors
from bayeslora_cli.export.independent_reader import BACKBONE
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.backbones.places import backbone_path
from bayeslora_cli.models.backbones.targets import inside


def saved_whole(
    network: Network, mean: Tensor, mask: Tensor, saved: list[str]
) -> dict[str, Tensor]:
    """Collect all tensors of the modules `saved`, with low-rank deltas on them merged in."""
    whole = dict(network.drawn)
    for name, segment in network.bank.segments.items():
        if segment.role == "head":
            whole[name] = segment.view(mean)
    for name, parts in kept_factors(network, mean, mask).items():
        if inside(name, saved):
            whole |= _merged(network, name, network.adapters[name], *parts)
    state = {}
    for name, parameter in network.module.state_dict().items():
        name = name.replace(".base_layer.", ".")
        if inside(name, saved) and ".lora_" not in name:
            state[name] = whole.get(name, parameter)
    return state


def write_adapter(
    network: Network, peft: PeftConfig, state: dict[str, Tensor], directory: Path
) -> None:
    """Write the files of an adapter; `state` has the backbone's own names."""
    peft.fan_in_fan_out = any(m.base_layer.transposed for m in network.adapters.values())
    # PEFT stores a set, whose order in the file would differ between processes
    peft.target_modules = sorted(peft.target_modules or ())
    directory.mkdir(parents=True, exist_ok=True)
    peft.save_pretrained(str(directory))
    # PEFT's own file has no place for the classes' names. In a subfolder, since transformers takes
    # a directory that has config.json for a whole model
    network.module.config.save_pretrained(directory / BACKBONE)
    # transformers looks for a model's own code beside adapter_config.json, whatever the subfolder
    for code in sorted((directory / BACKBONE).glob("*.py")):
        code.replace(directory / code.name)
    state = {
        f"base_model.model.{k}": v.detach().to("cpu", torch.float32, copy=True).contiguous()
        for k, v in state.items()
    }
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _merged(
    network: Network, name: str, layer: LowRankLinear, a: Tensor, e: Tensor | None, b: Tensor
) -> dict[str, Tensor]:
    """Return a layer's weight (and bias) in fp32 with its low-rank delta added."""
    base = {
        f"{name}.{key}": network.drawn.get(f"{name}.{key}", value).to(a.device, torch.float32)
        for key, value in layer.base_layer.plain().state_dict().items()
    }
    base[f"{name}.weight"] = base[f"{name}.weight"] + layer.delta_weight(a, e, b)
    return base


def modules_to_save(network: Network) -> list[str]:
    """Name the modules that PEFT must save whole: the head and the owners of drawn tensors.

    PEFT matches such modules by the end of their names ("classifier" matches "pre_classifier"), so
    all modules with a matching end are saved too.
    """
    endings = {*network.head, *(name.rpartition(".")[0] for name in network.drawn)}
    names = [n.removesuffix(".base_layer") for n, _ in network.module.named_modules() if n]
    return sorted({n for n in names if ".lora_" not in n and any(n.endswith(e) for e in endings)})


def common_arguments(
    entry: ObjectiveEntry, config: RunConfig, targets: list[str], saved: list[str]
) -> dict[str, Any]:
    """Return arguments that PEFT's AdaLoraConfig and LoraConfig share."""
    return {
        "task_type": TaskType[entry.peft_task],
        "base_model_name_or_path": backbone_path(config.model),
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "target_modules": targets,
        "modules_to_save": saved,
    }
