"""A tiny causal language model in one GGUF file, with its tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(
    path: Path, *, tied: bool = True, seed: int = 0, rule: str = "qwen2", spread: float = 0.02
) -> dict[str, torch.Tensor]:
    """Write a Qwen 2 of two layers in 8 bits; return the weights that a reader must find."""
    tokens = [*SPECIAL, *bytes_to_unicode().values(), "Ġt", "Ġq"]
    config = Qwen2Config(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=tied, initializer_range=spread,
    )  # fmt: skip
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config)
    writer = GGUFWriter(str(path), "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["Ġ t", "Ġ q"])  # transformers 5.10 reads a list of one as text
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = get_tensor_name_map(MODEL_ARCH.QWEN2, config.num_hidden_layers)
    found = {}
    for name, value in module.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        kind = GGMLQuantizationType.Q8_0 if value.ndim == 2 else GGMLQuantizationType.F32
        data = quants.quantize(value.numpy(), kind)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kind
        )
        found[name] = torch.from_numpy(quants.dequantize(data, kind).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found
