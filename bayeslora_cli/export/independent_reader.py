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


def open_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Open the tokenizer of an export."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def load_merged(directory: Path, auto_class: str, *, trust_remote_code: bool = False) -> Any:
    """Load a whole model on the CPU."""
    found = getattr(transformers, auto_class)
    return found.from_pretrained(directory, trust_remote_code=trust_remote_code)


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
        found: Tensor = model(**{name: value.to(device) for name, value in batch.items()}).logits
        return found.cpu()

    return logits
