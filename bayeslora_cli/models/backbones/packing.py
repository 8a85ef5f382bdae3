"""Backbones that take packed rows: which they are, and how they are told where a row begins."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from bayeslora_cli.models.decoders.packed_attention import (
    masked_attention,
    needs_no_mask,
    packed_attention,
)

BY_OFFSETS = frozenset({
    "arcee", "codegen", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
    "granitemoe", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
})  # fmt: skip
"""Architectures, by transformers' model types, that hand `row_offsets` on to our attention. A test
holds the packed rows of each against separate rows (`tests/models/backbones/test_packing.py`)."""
BY_POSITIONS = frozenset({"gpt_neo", "nemotron", "stablelm"})
"""Architectures whose own attention keeps rows apart if their positions begin anew, by a mask of
all tokens by all tokens; the same test holds them."""
ATTENTION = "bayeslora_packed"
"""Name of our attention in transformers' registers."""


def takes_packed_rows(model_type: str) -> bool:
    """Return whether an architecture keeps packed rows apart; the rows of others are padded."""
    return model_type in BY_OFFSETS or model_type in BY_POSITIONS


def prepare_for_packing(module: Any) -> None:
    """Have a backbone attend by row offsets where a batch has them, if its architecture may."""
    if module.config.model_type in BY_OFFSETS:
        module.set_attn_implementation(ATTENTION)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_offsets: Tensor | None = None,
    longest: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for: (1, h, t, d) -> (1, t, h, d).

    Rows that are padded, not packed, go to transformers' own function with their mask; it knows no
    softcap.
    """
    if row_offsets is None and softcap is not None:
        assert attention_mask is not None
        out = masked_attention(query, key, value, attention_mask, scaling, dropout, softcap)
        return out.transpose(1, 2), None
    if row_offsets is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    out = packed_attention(
        query, key, value, row_offsets, longest, scaling=scaling, dropout=dropout,
        window=sliding_window, softcap=softcap,
    )  # fmt: skip
    return out, None


def _mask(*args: Any, **options: Any) -> Any:
    """Make the mask of padded rows: bool, (b, 1, t, s)."""
    if needs_no_mask():
        return None
    return sdpa_mask(*args, **options | {"allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
