"""Opens an export as its users do: with transformers, and PEFT for an adapter.

It uses none of this package's model code, so that equal logits prove the export right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

BACKBONE = "backbone"
"""Subfolder of an adapter that holds the configuration of its backbone."""

Logits = Callable[[dict[str, Tensor]], Tensor]
"""Maps a batch of the tokenizer's outputs to logits (b, outputs) on the CPU."""


def open_adapter(
    directory: Path,
    backbone: Mapping[str, Any],
    auto_class: str,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
) -> Logits:
    """Open a PEFT adapter on a fresh copy of its backbone.

    Args:
        backbone: arguments of `from_pretrained` that name the checkpoint.
        auto_class: the class of transformers that loads the backbone.
    """
    trust = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(directory, subfolder=BACKBONE, **trust)
    base = getattr(transformers, auto_class).from_pretrained(
        **backbone, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **trust
    )
    return logits_of(adapted(base, directory), device)


def adapted(base: Any, directory: Path) -> Any:
    """Put a PEFT adapter on a backbone."""
    with warnings.catch_warnings():
        # PEFT 0.21 warns of the keys that its own AdaLoRA writes into rank_pattern, and asks
        # transformers 5.23 under a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
        # of an adapter on a tied output layer, which changes only that layer
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        return PeftModel.from_pretrained(base, str(directory))


def open_gguf_adapter(
    path: Path,
    backbone: Mapping[str, Any],
    auto_class: str,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
) -> Logits:
    """Open llama.cpp's LoRA adapter: add its products to the weights of a fresh backbone.

    transformers' reader of GGUF models knows the names of their tensors, and turns a weight's
    layout there into its own; so it does with an update of the weight.

    Args:
        backbone: arguments of `from_pretrained` that name the checkpoint.
        auto_class: the class of transformers that loads the backbone.
    """
    from gguf.gguf_reader import GGUFReader
    from transformers import modeling_gguf_pytorch_utils as reading

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    alpha = reader.fields["adapter.lora.alpha"].contents()
    model = getattr(transformers, auto_class).from_pretrained(
        **backbone, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    kind = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)
    processor = kind(config=model.config.to_dict())
    places = reading.get_gguf_hf_weights_map(model, processor, model_type=architecture)
    found = {tensor.name: tensor.data.astype("float64") for tensor in reader.tensors}
    for name in {name.rpartition(".lora_")[0] for name in found}:
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        update = processor.process(alpha / b.shape[1] * (b @ a), name).weights
        model.get_parameter(places[name]).data += torch.from_numpy(update.copy())
    return logits_of(model, device)


def open_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Open the tokenizer of an export."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def load_merged(directory: Path, auto_class: str, *, trust_remote_code: bool = False) -> Any:
    """Load a whole model on the CPU, in fp32."""
    found = getattr(transformers, auto_class)
    return found.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=trust_remote_code
    )


def open_merged(
    directory: Path, auto_class: str, device: torch.device, *, trust_remote_code: bool = False
) -> Logits:
    """Open a whole model."""
    model = load_merged(directory, auto_class, trust_remote_code=trust_remote_code)
    return logits_of(model, device)


def logits_of(model: Any, device: torch.device) -> Logits:
    """Move a transformers model to a device and return the function that computes its logits."""
    model.to(device).eval()

    @torch.inference_mode()
    def logits(batch: dict[str, Tensor]) -> Tensor:
        output = model(**{name: value.to(device) for name, value in batch.items()})
        # a model without a head has states
        found: Tensor = output.logits if "logits" in output else output.last_hidden_state
        return found.cpu()

    return logits
