"""Loads a backbone whose weights are to be divided, if possible without reading them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.backbones.loading import load_backbone, weight_files
from bayeslora_cli.models.sharding.stored_weights import StoredWeights
from bayeslora_cli.tasks.objectives.objective import Objective

logger = logging.getLogger("bayeslora")


def load_to_divide(
    config: RunConfig, objective: Objective, tokenizer: Any, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...], set[str], StoredWeights | None]:
    """Load a backbone whose weights each process reads a part of, or else all, on the CPU.

    Returns:
        What `load_backbone` returns, with its parameters on the meta device, and where they are
        stored; or with everything read, and None.
    Raises:
        ModelError: raised by `load_backbone`.
    """
    files = [] if objective.entry.head else weight_files(config.model)
    if files:
        weights = StoredWeights(files)
        module, head, missing = load_backbone(
            config, objective, tokenizer, device=torch.device("meta"), real_buffers=True
        )
        if all(weights.shape(n) == tuple(p.shape) for n, p in module.named_parameters()):
            return module, head, missing, weights
    logger.info(
        "--model %s: each process reads all weights into the host's memory before it keeps its "
        "part; of a model without a head, in safetensors with the names that transformers gives "
        "them, it would read its part only", config.model,
    )  # fmt: skip
    return *load_backbone(config, objective, tokenizer, dtype=dtype), None
