"""Train small runs whose ranks adapt, and export them for the programs that serve.

    python -m tests.serving.prepare OUT [MODEL ...]

OUT/MODEL gets what the readers beside this file need: the base model and the exports
as directories and as GGUF files of 32-bit numbers, two adapters in wrong forms, and `prompts.json`.
`docs/serving.md` says how the readers are run, each in an environment of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

import bayeslora_cli as bl
from bayeslora_cli.models.backbones.places import find_backbone
from tests.support.chats import byte_tokenizer
from tests.support.smollm import SMOLLM, save_smollm

QUESTIONS = (
    "What is 12+7?", "What is 3+30?", "Name a fruit.", "Why is the sky blue?", "Say hello.",
    "Write a sentence about rain and mountains.",
)  # fmt: skip
NEW_TOKENS = 16


def write_chats(path: Path, rows: int = 64) -> str:
    """Sums, with an answer that no model gives by itself."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            a, b = number % 13, 7 * number % 31
            turns = [("user", f"What is {a}+{b}?"), ("assistant", f"Sum: {a + b}, of {a} and {b}.")]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return str(path)


def train(root: Path, model: str, **options: Any) -> bl.Run:
    """Train for a few steps, AdaLoRA with so small a budget that some ranks become 0."""
    rows = write_chats(root / "chats.jsonl")
    settings = {
        "model": model, "train_file": rows, "eval_file": rows, "output": str(root / "runs"),
        "optimizer": "adamw", "init_rank": 12, "target_rank": 2, "max_length": 64,
        "max_steps": 10, "batch_size": 4, "t_init": 2, "t_final": 2, "delta_t": 1,
        "warmup_steps": 0, "device": "cpu", "seed": 1,
    }  # fmt: skip
    settings |= options
    run = bl.train(**{name: value for name, value in settings.items() if value is not None})
    ranks = [matrix.rank for matrix in run.ranks.matrices]
    empty = ranks.count(0)
    print(f"{root.name}: ranks {min(ranks)} to {max(ranks)}, {empty} of {len(ranks)} are 0")
    assert min(ranks) == 0 or run.config.method == "blora", ranks
    assert len(set(ranks)) > 2, ranks
    return run


# ---- GGUF files of whole models


def permuted(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    """The rows of a Llama's queries and keys in the order of llama.cpp."""
    if config.model_type != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    return interleaved(name, value, config)


def interleaved(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    """The rows of each head's two halves as pairs side by side."""
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    halves = value.reshape(heads, 2, -1, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


def weights(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory, as 32-bit numbers."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= {name: value.float().numpy() for name, value in load_file(file).items()}
    return found


def write_model(path: Path, directory: Path, fields: Iterable[tuple[str, Any, Any, Any]]) -> None:
    """Write a directory's tensors as 32-bit numbers, with given fields of a GGUF file."""
    config = AutoModelForCausalLM.from_pretrained(directory).config
    writer = gguf.GGUFWriter(str(path), config.model_type)
    for name, value, kind, inner in fields:
        writer.add_key_value(name, value, kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    kind = gguf.MODEL_ARCH[config.model_type.upper()]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, value in weights(directory).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert there is not None, name
        writer.add_tensor(there, permuted(name, value, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fields_of(reader: gguf.GGUFReader) -> Iterable[tuple[str, Any, Any, Any]]:
    """The fields that describe a model and its tokenizer."""
    for field in reader.fields.values():
        skipped = ("general.architecture", "general.file_type", "general.quantization_version")
        if not field.name.startswith("GGUF.") and field.name not in skipped:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            yield field.name, field.contents(), field.types[0], inner


def fields_for(config: PreTrainedConfig, tokenizer: Any) -> Iterable[tuple[str, Any, Any, Any]]:
    """The same for a small model that never was a GGUF file."""
    kinds = gguf.GGUFValueType
    for name, number in {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }.items():
        yield f"{config.model_type}.{name}", number, kinds.UINT32, None
    epsilon = f"{config.model_type}.attention.layer_norm_rms_epsilon"
    yield epsilon, config.rms_norm_eps, kinds.FLOAT32, None
    yield (
        f"{config.model_type}.rope.freq_base",
        config.rope_parameters["rope_theta"],
        kinds.FLOAT32,
        None,
    )
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    yield "tokenizer.ggml.model", "gpt2", kinds.STRING, None
    yield "tokenizer.ggml.pre", "gpt-2", kinds.STRING, None
    yield "tokenizer.ggml.tokens", words, kinds.ARRAY, kinds.STRING
    types = [3 if word in special else 1 for word in words]
    yield "tokenizer.ggml.token_type", types, kinds.ARRAY, kinds.INT32
    yield "tokenizer.ggml.merges", ["a b"], kinds.ARRAY, kinds.STRING
    yield "tokenizer.ggml.eos_token_id", tokenizer.eos_token_id, kinds.UINT32, None
    yield "tokenizer.ggml.bos_token_id", tokenizer.bos_token_id, kinds.UINT32, None


# ---- the models


def smollm(root: Path) -> list[tuple[str, Any, Any, Any]]:
    """The real model: 135M parameters, 210 adapted matrices."""
    save_smollm(root / "base")
    place = find_backbone(SMOLLM)
    reader = gguf.GGUFReader(Path(place.name) / str(place.gguf))
    found = list(fields_of(reader))
    write_model(root / "base.gguf", root / "base", found)
    # the file written is the package's own: so `permuted` is right, whoever reads it
    ours = {t.name: t for t in gguf.GGUFReader(root / "base.gguf").tensors}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours[tensor.name].data, value.reshape(ours[tensor.name].data.shape))
    return found


def tiny(root: Path) -> list[tuple[str, Any, Any, Any]]:
    """A random Llama with its own output layer."""
    return random_model(root, LlamaConfig)


def qwen2(root: Path) -> list[tuple[str, Any, Any, Any]]:
    """A random Qwen2: queries, keys and values have biases."""
    return random_model(root, Qwen2Config)


def random_model(root: Path, kind: type[Any]) -> list[tuple[str, Any, Any, Any]]:
    """A model of two layers, with heads of 32 numbers, which vLLM takes."""
    tokenizer = byte_tokenizer()
    config = kind(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=False, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith(".bias"):  # else zero
                value.normal_(std=0.5)
    module.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    found = list(fields_for(config, tokenizer))
    write_model(root / "base.gguf", root / "base", found)
    return found


def export(root: Path, run: bl.Run, fields: list[tuple[str, Any, Any, Any]]) -> None:
    """Write what is to be right, and what is to be wrong."""
    for name in ("lora", "merged", "gguf"):
        run.export(name, root / name, check_rows=4)
    write_model(root / "merged.gguf", root / "merged", fields)
    run.export("lora", root / "patterns", check_rows=4, patterns=True)
    forget_scales(root)
    order_rows_wrongly(root)


def forget_scales(root: Path) -> None:
    """Copy the adapter with patterns as it is to readers that know one alpha for all matrices."""
    shutil.copytree(root / "patterns", root / "wrong-scales")
    place = root / "wrong-scales" / "adapter_config.json"
    found = json.loads(place.read_text(encoding="utf-8"))
    assert found["alpha_pattern"], "a scale for each matrix"
    place.write_text(json.dumps(found | {"alpha_pattern": {}}), encoding="utf-8")


def order_rows_wrongly(root: Path) -> None:
    """Write the GGUF adapter with B's rows of queries and keys as they are in transformers, where
    llama.cpp wants pairs side by side; else the other way round.
    """
    (right,) = (root / "gguf").glob("*.gguf")
    config = AutoConfig.from_pretrained(root / "base")
    factors = load_file(root / "lora" / "adapter_model.safetensors")
    reader = gguf.GGUFReader(right)
    writer = gguf.GGUFWriter(str(root / "wrong-rows.gguf"), config.model_type)
    for name, value, kind, inner in fields_of(reader):
        writer.add_key_value(name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        value = np.array(tensor.data)
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if rest in ("attn_q.weight.lora_b", "attn_k.weight.lora_b"):
            name = f"layers.{block}.self_attn.{rest[5]}_proj"
            plain = factors[f"base_model.model.model.{name}.lora_B.weight"].numpy()
            assert np.array_equal(value, permuted(f"{name}.weight", plain, config))
            other = interleaved(name, plain, config)
            value = plain if np.array_equal(value, other) else other
        writer.add_tensor(tensor.name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_prompts(root: Path) -> None:
    """Tokens of questions, so that the readers need no tokenizer; and what a right one says."""
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for question in QUESTIONS
    ]
    (root / "prompts.json").write_text(json.dumps({"prompts": asked, "new_tokens": NEW_TOKENS}))


GATES = {
    "method": "blora", "target_rank": None, "delta_t": None, "gate_lr": 1.0, "lambda_rank": 1e-2,
    "lambda_quant": 3e-5, "t_init": 6, "t_final": 6, "max_steps": 40, "lr": 0.02,
}  # fmt: skip
"""Options of a B-LoRA run in which some gates close; no rank becomes 0."""
RUNS = {
    "tiny": (tiny, {"lr": 0.02, "max_steps": 20}),
    "smollm": (smollm, {"lr": 5e-3}),
    "qwen2": (qwen2, {"lr": 0.02, "max_steps": 20}),
    "blora": (qwen2, GATES),
}


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or RUNS:
        make, options = RUNS[name]
        root = out / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        fields = make(root)
        export(root, train(root, str(root / "base"), **options), fields)
        write_prompts(root)


if __name__ == "__main__":
    main()
