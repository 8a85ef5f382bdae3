"""Adapters in PEFT's format, written from the flat bank: AdaLoRA as trained, or plain LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.config.catalogue import OBJECTIVES, ObjectiveEntry
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.export.formats.format import Format, Snippet, kept_factors
from bayeslora_cli.export.independent_reader import BACKBONE, Logits, open_adapter
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.blora.gates import BASE, WEIGHTS
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.adapters.plain_lora import fold, plain_number, uniform, without_empty
from bayeslora_cli.models.backbones.places import backbone_path, find_backbone, parsed_once
from bayeslora_cli.models.backbones.targets import inside
from bayeslora_cli.runs.model_card import base_model, trust_argument
from bayeslora_cli.tasks.task import Task


class PeftAdapter(Format):
    """An adapter that PEFT opens on a fresh copy of the backbone."""

    keeps = frozenset(WEIGHTS) - {BASE}
    advice = "; --format merged needs no PEFT"

    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Open the adapter with PEFT."""
        torch.seed()  # tensors that the base lacks are drawn anew: the export must bring them
        place = find_backbone(config.model)
        with parsed_once(place):
            return open_adapter(
                directory,
                place.arguments,
                OBJECTIVES[task.objective].auto_class,
                device,
                trust_remote_code=config.trust_remote_code,
            )

    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the adapter with PEFT."""
        auto_class, head = OBJECTIVES[task.objective].auto_class, OBJECTIVES[task.objective].head
        standard, base = base_model(config.model)
        trust, gguf = trust_argument(config), find_backbone(config.model).arguments
        dequantized = ["    quantization_config=GgufConfig(dequantize=True),"]
        if "quantization_config" not in gguf:
            dequantized = []
        return Snippet(
            standard=tuple(standard),
            packages=("from peft import PeftModel",),
            transformers=("AutoConfig", auto_class, *(["GgufConfig"] if dequantized else [])),
            load=(
                f'config = AutoConfig.from_pretrained(directory, subfolder="{BACKBONE}"{trust})',
                f"base = {auto_class}.from_pretrained(",
                f"    {base}, config=config{trust},",
                *dequantized,
                *(["    ignore_mismatched_sizes=True,  # the adapter brings the head"] * head),
                ")",
                "model = PeftModel.from_pretrained(base, directory)",
            ),
        )


class AdaloraAdapter(PeftAdapter):
    """PEFT's AdaLoRA adapter, pruned."""

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        config = replace(config, target_rank=options.target_rank or config.target_rank)
        save_peft_adapter(network, config, network.bank.mean, network.bank.mask, directory)
        return {}

    def description(self, options: ExportOptions) -> str:
        return "This is the pruned AdaLoRA adapter, for PEFT."


class LoraAdapter(PeftAdapter):
    """Plain LoRA adapter, with one rank per matrix or one rank for all."""

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        mean, mask = network.bank.mean, network.bank.mask
        save_lora_adapter(network, config, mean, mask, directory, one_rank=options.uniform_rank)
        return {}

    def description(self, options: ExportOptions) -> str:
        if options.uniform_rank:
            return "This is a plain LoRA adapter padded with zeros to one rank and one alpha."
        return (
            "This is a plain LoRA adapter with a rank and an alpha of its own for each matrix "
            "(`rank_pattern`,\n`alpha_pattern`), for PEFT."
        )


ADALORA = AdaloraAdapter()
LORA = LoraAdapter()


@torch.no_grad()
def save_peft_adapter(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path
) -> None:
    """Write the pruned adapter in PEFT's own format, of the type that its method names.

    Frozen tensors that the checkpoint lacked are saved whole (`modules_to_save`), with low-rank
    deltas on them merged in, so that the adapter predicts the same on any copy of the checkpoint.

    `AutoConfig.from_pretrained(directory, subfolder=BACKBONE)` returns the backbone's
    configuration, with the names of the classes.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
    """
    if find_method(config.method).peft_type == "LORA" and network.bank.has_singular_values:
        save_lora_adapter(network, config, mean, mask, directory, one_rank=False)
        return
    saved = _modules_to_save(network)
    state: dict[str, Tensor] = {}
    pattern: dict[str, list[bool]] = {}
    targets = []
    for index, (name, (a, e, b)) in enumerate(kept_factors(network, mean, mask).items()):
        if inside(name, saved):
            continue
        targets.append(name)
        if e is None:
            state |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        else:
            pattern[f"{name}.lora_E"] = mask[index].bool().tolist()
            state |= {f"{name}.lora_A": a, f"{name}.lora_E": e, f"{name}.lora_B": b}
    peft = _peft_config(network.objective.entry, config, targets, saved, pattern)
    _write(network, peft, state | _saved_whole(network, mean, mask, saved), directory)


@torch.no_grad()
def save_lora_adapter(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path,
    *, one_rank: bool,
) -> None:  # fmt: skip
    """Write the adapter as plain LoRA; matrices that kept no rank are left out.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
        one_rank: pad all matrices with zeros to one rank and one alpha; else each has its own.
    Raises:
        ModelError: the checkpoint lacks all adapted matrices.
    """
    saved = _modules_to_save(network)
    factors = without_empty(
        {
            name: fold(*parts, network.adapters[name].scale)
            for name, parts in kept_factors(network, mean, mask).items()
            if not inside(name, saved)
        }
    )
    if not factors:
        raise ModelError(
            f"the checkpoint lacks {', '.join(network.adapters)}, which an adapter saves whole: no "
            "low-rank adapter is left; use --format merged"
        )
    if one_rank:
        factors = uniform(factors, config.alpha)
    widest = max(factors.values(), key=lambda f: f.rank)
    ranks = {name: f.rank for name, f in factors.items()}
    alphas = {name: plain_number(f.alpha) for name, f in factors.items()}
    usual = plain_number(widest.alpha)
    peft = LoraConfig(
        r=widest.rank,
        rank_pattern={n: r for n, r in ranks.items() if r != widest.rank},
        alpha_pattern={n: alpha for n, alpha in alphas.items() if alpha != usual},
        **_common(network.objective.entry, config, list(factors), saved) | {"lora_alpha": usual},
    )
    state = {f"{name}.lora_A.weight": f.a for name, f in factors.items()}
    state |= {f"{name}.lora_B.weight": f.b for name, f in factors.items()}
    _write(network, peft, state | _saved_whole(network, mean, mask, saved), directory)


def _saved_whole(
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


def _write(network: Network, peft: PeftConfig, state: dict[str, Tensor], directory: Path) -> None:
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


def _modules_to_save(network: Network) -> list[str]:
    """Name the modules that PEFT must save whole: the head and the owners of drawn tensors.

    PEFT matches such modules by the end of their names ("classifier" matches "pre_classifier"), so
    all modules with a matching end are saved too.
    """
    endings = {*network.head, *(name.rpartition(".")[0] for name in network.drawn)}
    names = [n.removesuffix(".base_layer") for n, _ in network.module.named_modules() if n]
    return sorted({n for n in names if ".lora_" not in n and any(n.endswith(e) for e in endings)})


def _peft_config(
    entry: ObjectiveEntry,
    config: RunConfig,
    targets: list[str],
    saved: list[str],
    pattern: dict[str, list[bool]],
) -> PeftConfig:
    common = _common(entry, config, targets, saved)
    if find_method(config.method).peft_type == "LORA":
        return LoraConfig(r=config.target_rank, **common)
    return AdaLoraConfig(
        init_r=config.init_rank,
        target_r=config.target_rank,
        tinit=config.t_init,
        tfinal=config.t_final,
        deltaT=config.delta_t,
        # PEFT refuses a schedule without a pruning phase; a run of one step has none
        total_step=max(config.schedule_steps or 0, config.t_init + config.t_final + 1),
        orth_reg_weight=config.orth_reg,
        rank_pattern=pattern,
        **common,
    )


def _common(
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
