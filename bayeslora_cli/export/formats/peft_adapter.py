"""Adapters in PEFT's format, written from the flat bank: AdaLoRA as trained, or plain LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from torch import Tensor

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, OBJECTIVES, ObjectiveEntry
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.formats.adapter_files import (
    common_arguments,
    modules_to_save,
    saved_whole,
    write_adapter,
)
from bayeslora_cli.export.formats.format import Format, Snippet, kept_factors
from bayeslora_cli.export.formats.gguf_adapter import commands_of_peft
from bayeslora_cli.export.formats.lora_files import save_patterned_adapter, save_uniform_adapter
from bayeslora_cli.export.independent_reader import BACKBONE, Logits, open_adapter
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.blora.gates import BASE, WEIGHTS
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.plain_lora import SERVED_RANKS
from bayeslora_cli.models.backbones.places import find_backbone, parsed_once
from bayeslora_cli.models.backbones.targets import inside
from bayeslora_cli.runs.model_card import GGUF, base_in_shell, base_model, trust_argument
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
        stored, classes = [], ["AutoConfig", auto_class]
        base_precision = BASE_PRECISIONS.get(config.base_precision or "")
        if "quantization_config" in gguf:
            stored = ["    quantization_config=GgufConfig(dequantize=True),"]
            classes.append("GgufConfig")
        elif base_precision is not None and base_precision.elsewhere and not head:
            stored = [
                "    quantization_config=BitsAndBytesConfig(  # weights as in the training",
                *(f"        {argument}," for argument in base_precision.elsewhere),
                "    ),",
            ]
            classes.append("BitsAndBytesConfig")
        return Snippet(
            standard=tuple(standard),
            packages=("from peft import PeftModel",),
            transformers=tuple(classes),
            load=(
                f'config = AutoConfig.from_pretrained(directory, subfolder="{BACKBONE}"{trust})',
                f"base = {auto_class}.from_pretrained(",
                f"    {base}, config=config{trust},",
                *stored,
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
    """Plain LoRA adapter, with one rank for all matrices or one rank per matrix."""

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write the adapter; return its largest rank, and `patterns` if matrices have their own."""
        save = save_patterned_adapter if options.patterns else save_uniform_adapter
        rank = save(network, config, network.bank.mean, network.bank.mask, directory)
        return {"largest_rank": rank} | ({"patterns": True} if options.patterns else {})

    def description(self, options: ExportOptions) -> str:
        if options.patterns:
            return (
                "This is a plain LoRA adapter with a rank and an alpha of its own for each matrix "
                "(`rank_pattern`,\n`alpha_pattern`), for PEFT. Not every other reader knows these."
            )
        return (
            "This is a plain LoRA adapter of one rank, padded with zeros, with alpha = r: its "
            "matrices hold the\nwhole scale, so that PEFT and vLLM compute the same with it."
        )

    def serving(self, config: RunConfig, task: Task, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Return vLLM's command, or llama.cpp's for a base model in a GGUF file, if it is right."""
        rank = facts["largest_rank"]
        if not OBJECTIVES[task.objective].generates:
            return ()
        if config.model.endswith(GGUF):  # llama.cpp's converter leaves out scales of matrices
            return () if "patterns" in facts else commands_of_peft(config.model)
        if rank not in SERVED_RANKS:
            return ()
        return (
            f"vllm serve {base_in_shell(config.model)} --enable-lora --max-lora-rank {rank} "
            "--lora-modules tuned=.",
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
        save_patterned_adapter(network, config, mean, mask, directory)
        return
    saved = modules_to_save(network)
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
    write_adapter(network, peft, state | saved_whole(network, mean, mask, saved), directory)


def _peft_config(
    entry: ObjectiveEntry,
    config: RunConfig,
    targets: list[str],
    saved: list[str],
    pattern: dict[str, list[bool]],
) -> PeftConfig:
    common = common_arguments(entry, config, targets, saved)
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
