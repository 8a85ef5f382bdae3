"""The whole fine-tuned model in transformers' own files, with the adapters merged in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.formats.bf16_rounding import Rounding, UpdateMeter, bf16
from bayeslora_cli.export.formats.format import Format, Snippet, kept_factors
from bayeslora_cli.export.independent_reader import Logits, open_merged
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.base_weights.quantized_linear import FrozenLinear
from bayeslora_cli.models.encoders.relative_attention import RelativeAttention
from bayeslora_cli.runs.model_card import trust_argument
from bayeslora_cli.tasks.task import Task

BF16 = "bf16"
"""The value of `ExportOptions.precision` for rounded weights."""


class MergedModel(Format):
    """The whole model, which only transformers is needed to open."""

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write `save_pretrained`'s files, in fp32 or, of what `round` left, in bf16."""
        if options.precision == BF16:
            module = network.module.to(torch.bfloat16)
        else:
            module = merge(network, network.bank.mean, network.bank.mask)
        module.save_pretrained(directory, state_dict=state_of(module))
        network.objective.write_beside(directory, config.max_length)
        return {} if options.precision != BF16 else {"weights": BF16}

    @torch.no_grad()
    def round(self, network: Network, options: ExportOptions) -> Rounding | None:
        """Merge in fp32 and round all weights, if bf16 is asked for; measure the updates' rest."""
        if options.precision != BF16:
            return None
        meter, bank = UpdateMeter(), network.bank
        module = merge(network, bank.mean, bank.mask, meter)
        for value in (*module.state_dict().values(), bank.mean):
            if value.is_floating_point():
                value.copy_(bf16(value))
        return Rounding(update=meter.result())

    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Open the model with transformers."""
        return open_merged(
            directory,
            OBJECTIVES[task.objective].auto_class,
            device,
            trust_remote_code=config.trust_remote_code,
        )

    def description(self, options: ExportOptions) -> str:
        rounded = ", in fp32, and rounded to bf16" if options.precision == BF16 else ""
        return f"This is the whole model, the adapter merged in{rounded}."

    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the model with transformers."""
        name = OBJECTIVES[task.objective].auto_class
        trust = trust_argument(config)
        return Snippet(
            transformers=(name,), load=(f"model = {name}.from_pretrained(directory{trust})",)
        )

    def serving(self, config: RunConfig, task: Task, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Return vLLM's command; it would round weights in fp32 without being told."""
        if not OBJECTIVES[task.objective].generates:
            return ()
        return ("vllm serve ." if "weights" in facts else "vllm serve . --dtype float32",)


MERGED = MergedModel()


@torch.no_grad()
def merge(network: Network, mean: Tensor, mask: Tensor, meter: UpdateMeter | None = None) -> Any:
    """Merge the adapters into the backbone's weights; return the network's own module, changed.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
        meter: is told each weight and its update.
    """
    rounded = network.effective_base(mean)
    shared = _shared(network.module)
    for name, (a, e, b) in kept_factors(network, mean, mask).items():
        layer = network.adapters[name]
        if name in rounded:
            layer.base_layer.replace_dense(rounded[name])
        base = layer.base_layer.plain()
        if id(base.weight) in shared:  # each place has its own adapter
            base = deepcopy(base)
        assert isinstance(base.weight, Tensor)
        update = layer.delta_weight(a, e, b)
        if meter is not None:
            meter.add(name, base.weight, update)
        base.weight += update
        parent, _, last = name.rpartition(".")
        setattr(network.module.get_submodule(parent), last, base)
    for name, layer in list(network.module.named_modules()):
        if isinstance(layer, FrozenLinear):
            parent, _, last = name.rpartition(".")
            setattr(network.module.get_submodule(parent), last, layer.form.plain())
    for attention in network.module.modules():
        if isinstance(attention, RelativeAttention):
            attention.joint = None  # the joint would add its layers' deltas once more
    _untie(network.module)
    return network.module


def _untie(module: Any) -> None:
    """Say in the configuration if a merge has separated the output layer from the embeddings."""
    output = module.get_output_embeddings()  # None: no language model, which may have no table
    if output is not None and module.config.tie_word_embeddings:
        tied = output.weight is module.get_input_embeddings().weight
        module.config.tie_word_embeddings = tied


def _shared(module: Any) -> set[int]:
    """Return the ids of parameters that several modules share."""
    counts = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    return {found for found, count in counts.items() if count > 1}


def state_of(module: Any) -> dict[str, Tensor]:
    """Copy a merged model's tensors to the CPU, each to its own memory.

    safetensors refuses tensors that share memory, as views of the bank do.
    """
    tied = tied_names(module)
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in module.state_dict().items()
        if name not in tied
    }


def tied_names(module: Any) -> set[str]:
    """Return the name of the output layer's weight, if it is the embeddings'.

    A file of the model holds such a weight once.
    """
    output = module.get_output_embeddings()
    if output is None or output.weight is not module.get_input_embeddings().weight:
        return set()
    return {f"{name}.weight" for name, found in module.named_modules() if found is output}
