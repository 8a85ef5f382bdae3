"""Replaces the disentangled attention of DeBERTa-v2/v3 in a backbone of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayeslora_cli.models.encoders.packed_rows import Rows, present_batch
from bayeslora_cli.models.encoders.relative_attention import RelativeAttention

REPLACED = "DisentangledSelfAttention"  # transformers' name; version 1 of DeBERTa has it as well
EXPECTED = (
    "query_proj", "key_proj", "value_proj", "num_attention_heads", "attention_head_size",
    "share_att_key", "pos_att_type", "relative_attention",
)  # fmt: skip
EXPECTED_IF_RELATIVE = (
    "position_buckets", "max_relative_positions", "pos_ebd_size", "pos_dropout",
)  # fmt: skip


def replace_attention(module: nn.Module, max_length: int | None = None) -> int:
    """Replace the disentangled attention in every DeBERTa-v2 encoder of `module`, in place.

    The projections stay the same modules under the same names. Encoders whose attention is of
    another class, or is not relative, stay as they are, and so does a model whose configuration
    asks for attention matrices.

    Args:
        max_length: the longest input in tokens; None: the backbone's own limit. A longer one works,
            but its first forward pass cannot be captured.
    Returns:
        The number of replaced modules.
    """
    if getattr(getattr(module, "config", None), "output_attentions", False):
        return 0
    replaced = 0
    for encoder in module.modules():
        if not (hasattr(encoder, "get_rel_pos") and hasattr(encoder, "get_attention_mask")):
            continue
        found = [
            (parent, name, child)
            for parent in encoder.modules()
            for name, child in parent.named_children()
            if type(child).__name__ == REPLACED
        ]
        if not found or not all(_is_known(child) for _, _, child in found):
            continue
        for parent, name, child in found:
            setattr(parent, name, RelativeAttention(child, max_length))
        # set on the instance: the replaced attention makes positions and mask itself
        encoder.get_rel_pos = _no_positions  # type: ignore[assignment]
        encoder.get_attention_mask = _pairs  # type: ignore[assignment]
        replaced += len(found)
    return replaced


def _is_known(attention: nn.Module) -> bool:
    return (
        all(hasattr(attention, name) for name in EXPECTED)
        and isinstance(getattr(attention, "dropout", None), nn.Dropout)
        and bool(attention.relative_attention)
        and all(hasattr(attention, name) for name in EXPECTED_IF_RELATIVE)
    )


def _no_positions(*_: Any, **__: Any) -> None:
    """Return no relative positions: each replaced attention computes its own."""


def _pairs(attention_mask: Tensor) -> Tensor | Rows:
    """Return which query may see which key: (B, L) or (B, L, L) -> bool (B, 1, L, L).

    Of a packed batch return its `Rows`, which the mask does not tell.
    """
    if (batch := present_batch()) is not None:
        return batch.rows
    seen = attention_mask.bool()
    if seen.dim() == 2:
        return seen[:, None, None, :] & seen[:, None, :, None]
    return seen[:, None] if seen.dim() == 3 else seen
