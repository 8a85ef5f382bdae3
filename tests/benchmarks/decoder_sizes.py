"""The decoders of the causal benchmarks, by their published configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """An architecture, and the batch that it is measured with."""

    name: str
    kind: str
    """transformers' model type."""
    rows: int
    tokens: int
    options: dict[str, Any]
    target_ms: float | None = None
    target_gib: float | None = None

    def config(self) -> Any:
        """The model's configuration."""
        return AutoConfig.for_model(
            self.kind, pad_token_id=0, attention_dropout=0.0, **self.options
        )


SIZES = {
    "smollm2": Size(
        name="SmolLM2-135M", kind="llama", rows=8, tokens=1024, target_ms=28, target_gib=4,
        options={
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "head_dim": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
    ),
    "llama": Size(
        name="Llama-3.2-1B", kind="llama", rows=8, tokens=1024, target_ms=85, target_gib=11,
        options={
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
        },
    ),
    "qwen": Size(
        name="Qwen2.5-7B", kind="qwen2", rows=4, tokens=1024, target_ms=225, target_gib=28,
        options={
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 8192,
        },
    ),
    "qwen32b": Size(
        name="Qwen2.5-32B", kind="qwen2", rows=4, tokens=1024,
        options={
            "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648,
            "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 8192,
        },
    ),
    "llama70b": Size(
        name="Llama-3.3-70B", kind="llama", rows=4, tokens=1024, target_gib=60,
        options={
            "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
            "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "max_position_embeddings": 8192,
        },
    ),
    "tiny": Size(
        name="a tiny Llama", kind="llama", rows=2, tokens=32,
        options={
            "vocab_size": 500, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 512,
        },
    ),
}  # fmt: skip
