"""The adapter as PEFT's own files, written from the flat bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn

from bayeslora_cli.adapters import LowRankLinear
from bayeslora_cli.backbone import backbone_path, inside
from bayeslora_cli.config import RunConfig
from bayeslora_cli.model import METHODS, Network

BACKBONE = "backbone"  # subfolder of an adapter: the configuration that it was trained with


@torch.no_grad()
def save_peft_adapter(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path
) -> None:
    """Write the adapter in PEFT's own format, pruned.

    Frozen tensors that the checkpoint lacked are saved whole (`modules_to_save`), a low-rank delta
    on one of them merged in, so that the adapter predicts the same on any copy of the checkpoint.

    `AutoConfig.from_pretrained(directory, subfolder=BACKBONE)` is the backbone's configuration,
    with the classes' names.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
    """
    bank, module = network.bank, network.module
    saved = _modules_to_save(network)
    state: dict[str, Tensor] = {}
    pattern: dict[str, list[bool]] = {}
    prefix = "base_model.model"
    whole: dict[str, Tensor] = dict(network.drawn)
    for name, segment in bank.segments.items():
        if segment.role == "head":
            whole[name] = segment.view(mean)
    for index, (name, layer) in enumerate(network.adapters.items()):
        part = {p: bank.segments.get(f"{name}.lora_{p}") for p in "AEB"}
        a, e, b = (None if s is None else s.view(mean) for s in part.values())
        assert a is not None
        assert b is not None
        kept = mask[index].bool()
        if inside(name, saved):
            whole.update(_merged(network, name, layer, a[kept], None if e is None else e[kept],
                                 b[:, kept]))  # fmt: skip
        elif e is None:
            state[f"{prefix}.{name}.lora_A.weight"] = a
            state[f"{prefix}.{name}.lora_B.weight"] = b
        else:
            pattern[f"{name}.lora_E"] = kept.tolist()
            state[f"{prefix}.{name}.lora_A"] = a[kept]
            state[f"{prefix}.{name}.lora_E"] = e[kept]
            state[f"{prefix}.{name}.lora_B"] = b[:, kept]
    for name, parameter in module.state_dict().items():
        name = name.replace(".base_layer.", ".")
        if inside(name, saved) and ".lora_" not in name:
            state[f"{prefix}.{name}"] = whole.get(name, parameter)

    targets = [n for n in network.adapters if not inside(n, saved)]
    peft = _peft_config(config, targets, saved, pattern)
    peft.fan_in_fan_out = any(
        not isinstance(m.base_layer, nn.Linear) for m in network.adapters.values()
    )
    directory.mkdir(parents=True)
    peft.save_pretrained(str(directory))
    # the classes' names, for which PEFT's own file has no place; beside it, transformers would take
    # the directory for a whole model
    module.config.save_pretrained(directory / BACKBONE)
    state = {
        k: v.detach().to("cpu", torch.float32, copy=True).contiguous() for k, v in state.items()
    }
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _merged(
    network: Network, name: str, layer: LowRankLinear, a: Tensor, e: Tensor | None, b: Tensor
) -> dict[str, Tensor]:
    """A layer's weight (and bias) in fp32 with its low-rank delta added."""
    base = {
        f"{name}.{key}": network.drawn.get(f"{name}.{key}", value).to(a.device, torch.float32)
        for key, value in layer.base_layer.state_dict().items()
    }
    base[f"{name}.weight"] = base[f"{name}.weight"] + layer.delta_weight(a, e, b)
    return base


def _modules_to_save(network: Network) -> list[str]:
    """Modules that PEFT must save whole: the head and the owners of drawn tensors.

    PEFT finds such modules by the ending of their names ("classifier" finds "pre_classifier"), so
    whatever an ending finds is saved as well.
    """
    endings = {*network.head, *(name.rpartition(".")[0] for name in network.drawn)}
    names = [n.removesuffix(".base_layer") for n, _ in network.module.named_modules() if n]
    return sorted({n for n in names if ".lora_" not in n and any(n.endswith(e) for e in endings)})


def _peft_config(
    config: RunConfig, targets: list[str], saved: list[str], pattern: dict[str, list[bool]]
) -> PeftConfig:
    common: dict[str, Any] = {
        "task_type": TaskType.SEQ_CLS,
        "base_model_name_or_path": backbone_path(config.model),
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "target_modules": targets,
        "modules_to_save": saved,
    }
    if not METHODS[config.method].adaptive:
        return LoraConfig(r=config.target_rank, **common)
    return AdaLoraConfig(
        init_r=config.init_rank,
        target_r=config.target_rank,
        tinit=config.t_init,
        tfinal=config.t_final,
        deltaT=config.delta_t,
        # PEFT refuses a schedule without a pruning phase, which a run of one step has
        total_step=max(config.schedule_steps or 0, config.t_init + config.t_final + 1),
        orth_reg_weight=config.orth_reg,
        rank_pattern=pattern,
        **common,
    )
