"""A tiny model of every sequence classification architecture that transformers offers.

`KINDS` is transformers' own mapping. The sizes of a tiny model follow from the names of the
fields of its configuration (`SIZES`); what an architecture needs beside them is in `OWN`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

KINDS = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

WORDS = (
    "red", "green", "blue", "small", "large", "quick", "slow", "cat", "dog", "bird", "runs",
    "sleeps", "sings", "over", "a",
)  # fmt: skip
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
IDS = {"bos": 0, "pad": 1, "eos": 2, "mask": 4, "cls": 0, "sep": 2}

SIZES: dict[str, Any] = {
    # widths
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "embedding_size",
            "d_latents",
            "word_embed_proj_dim",
            "pooler_hidden_size",
            "prediction_head_size",
            "out_hidden_size",
            "input_embedding_size",
            "output_embedding_size",
            "true_hidden_size",
            "intra_bottleneck_size",
            "pronunciation_embed_dim",
            "shape_embed_dim",
            "entity_emb_size",
            "prompt_mid_dim",
            "lru_width",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "d_ff",
            "dff",
            "d_inner",
            "hidden_dim",
            "n_inner",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "feed_forward_size",
        ),
        48,
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    # depths
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "depth",
            "num_self_attends_per_block",
            "num_decoder_layers",
            "num_feedforward_networks",
        ),
        2,
    ),
    # heads
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_self_attention_heads",
            "num_cross_attention_heads",
            "linear_num_value_heads",
            "n_mamba_heads",
            "index_n_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "d_head",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "v_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "index_head_dim",
            "kv_channels",
            "attention_head_size",
            "rotary_dim",
            "attention_head_dim",
            "query_pre_attn_scalar",
        ),
        8,
    ),
    "qk_head_dim": 16,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "gated_norm_rank", "adapter_rank"), 8),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # tables
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 66),
    "vocab_size": len(SPECIAL) + len(WORDS),
    "entity_vocab_size": 8,
    "pronunciation_vocab_size": 32,
    "shape_vocab_size": 32,
    "num_hash_buckets": 32,
    # state spaces, windows, images
    **dict.fromkeys(("mamba_d_state", "mamba_dt_rank"), 4),
    **dict.fromkeys(
        ("sliding_window", "local_attention", "window_size", "index_topk", "attention_window"), 16
    ),
    "image_size": 16,
    "patch_size": 4,
    # large enough that a wrong adapter shows
    **dict.fromkeys(("initializer_range", "init_std"), 0.1),
    **{f"{name}_token_id": found for name, found in IDS.items()},
}

_LATENT = {"num_key_value_heads": 4}  # latent attention has as many keys as queries
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
OWN: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(["sliding_attention", "full_attention"], _ROTARY),
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "esmc": _LATENT,
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1]},  # transformers offers two
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 16},
    "lilt": {"hidden_size": 48},  # six coordinates share it
    "markuplm": {"max_depth": 4, "max_xpath_tag_unit_embeddings": 8, "tag_pad_id": 7,
                 "max_xpath_subs_unit_embeddings": 8, "subs_pad_id": 7},
    "minicpm3": _LATENT,
    "mistral4": {"num_key_value_heads": 4, "head_dim": 16},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
                 "attn_layers": ["local", "lsh"]},
    "t5": {"decoder_start_token_id": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2,
              "n_mamba_heads": 1, "attention_hidden_size": 64, "attention_head_dim": 16,
              "num_key_value_heads": 4, "use_mamba_kernels": False},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
               "mamba_headdim": 16, "num_key_value_heads": 4, "attention_hidden_size": 64,
               "attention_head_dim": 16},
}  # fmt: skip
"""What some architectures need beside `SIZES`."""


def tiny_config(kind: str) -> Any:
    """Return a tiny configuration."""
    return _tiny(CONFIG_MAPPING[kind], OWN.get(kind, {}))


def _tiny(config_class: type, own: dict[str, Any]) -> Any:
    usual = config_class()
    fields: dict[str, Any] = {}
    for name in usual.to_dict():
        value = getattr(usual, name, None)
        if isinstance(value, PretrainedConfig):
            fields[name] = _tiny(type(value), own.get(name, {})).to_dict()
        elif name in SIZES:
            fields[name] = SIZES[name]
    return config_class(**fields | {k: v for k, v in own.items() if k not in usual.sub_configs})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per word, with a token before and one after a text."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>", cls_token="<s>", sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def save_tiny_model(kind: str, directory: Path) -> Any:
    """Save a random backbone without its head, and its tokenizer; return its configuration."""
    config = tiny_config(kind)
    torch.manual_seed(7)
    AutoModel.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return config
