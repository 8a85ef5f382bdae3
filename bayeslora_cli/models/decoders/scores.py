"""What a causal language model says about tokens: the log-likelihood of each target."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bayeslora_cli.models.backbones.packing import ATTENTION, takes_packed_rows
from bayeslora_cli.models.decoders.packed_attention import without_masks
from bayeslora_cli.models.kernels.decoder.token_log_likelihood import (
    CHUNK,
    PADDING,
    token_log_likelihood,
)

ASIDE = ("predicting", "targets")
"""Tensors of a batch that the backbone does not get."""
OFFSETS = ("row_offsets", "longest")
"""Tensors of a batch that only our attention takes."""
COHERE = ("cohere", "cohere2")
"""Architectures that multiply their logits by `logit_scale`; others have that field for nothing."""
PADDED = frozenset({"bloom", "falcon", "gpt_oss", "lfm2", "mamba", "mpt"})
"""Architectures that take no packed rows, and whose logits are the output layer's. Of all others
the model itself computes the logits of a whole batch."""


def log_likelihoods(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the log-likelihood of each target under a causal language model.

    Args:
        module: the model, with its output layer.
        batch: packed rows, `input_ids` and `position_ids` (1, t), `row_offsets` (rows + 1,) and on
            a GPU `longest` (0, n); or padded rows, `input_ids` and `attention_mask` (rows, w). And
            `predicting` (c,), places in the flattened `input_ids` whose next token is predicted,
            and `targets` (c,), those next tokens.
    Returns:
        (c,) fp32; 0 where the target is padding.
    """
    inputs = {name: value for name, value in batch.items() if name not in ASIDE}
    by_offsets = "row_offsets" in inputs and module.config._attn_implementation == ATTENTION
    if not by_offsets:  # then packed rows are known by their positions
        inputs = {name: value for name, value in inputs.items() if name not in OFFSETS}
    known = _output_is_known(module)
    # with its cache on, transformers lets packed rows see each other
    with without_masks() if by_offsets else nullcontext():
        found = (module.get_decoder() if known else module)(**inputs, use_cache=False)
    if not known:
        return _at_targets(found.logits.flatten(0, 1)[batch["predicting"]], batch["targets"])
    hidden = found.last_hidden_state.flatten(0, 1)
    output = _output_of(module)
    return token_log_likelihood(
        hidden.index_select(0, batch["predicting"]).to(output.weight.dtype),
        output.weight,
        output.bias,
        batch["targets"],
        scale=output.scale,
        softcap=output.softcap,
    )


@dataclass(frozen=True, slots=True)
class _Output:
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None


def _output_is_known(module: Any) -> bool:
    """Return whether `_output_of` says how the logits come about: not if the output layer has an
    adapter, ours or PEFT's, nor for every architecture."""
    kind = module.config.model_type
    if not isinstance(module.get_output_embeddings(), nn.Linear):
        return False
    return takes_packed_rows(kind) or kind in PADDED


def _output_of(module: Any) -> _Output:
    """Describe how logits follow from hidden states: by the output layer, a factor, and a cap."""
    layer, config = module.get_output_embeddings(), module.config
    divisor = getattr(config, "logits_scaling", None)  # Granite's
    factor = getattr(config, "logit_scale", None) if config.model_type in COHERE else None
    return _Output(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=(1.0 if factor is None else factor) / (1.0 if divisor is None else divisor),
        softcap=getattr(config, "final_logit_softcapping", None),  # Gemma's
    )


def _at_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax of logits (c, v) at the targets (c,), with few rows in fp32 at a time."""

    def part(rows: Tensor, aims: Tensor) -> Tensor:
        return -F.cross_entropy(rows.float(), aims, ignore_index=PADDING, reduction="none")

    size = max(1, CHUNK // logits.shape[1])
    parts = zip(torch.split(logits, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(part, *both, use_reentrant=False) for both in parts])
