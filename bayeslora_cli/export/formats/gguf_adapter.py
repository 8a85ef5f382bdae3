"""A LoRA adapter for llama.cpp: one GGUF file, beside the base model's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError, UserError
from bayeslora_cli.export.formats.adapter_files import modules_to_save
from bayeslora_cli.export.formats.format import Format, Snippet
from bayeslora_cli.export.formats.lora_files import uniform_factors
from bayeslora_cli.export.independent_reader import BACKBONE, Logits, open_gguf_adapter
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.blora.gates import BASE, WEIGHTS
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.plain_lora import LoraFactors, kind_of
from bayeslora_cli.models.backbones.loading import load_configuration
from bayeslora_cli.models.backbones.places import find_backbone, parsed_once
from bayeslora_cli.runs.model_card import GGUF as GGUF_END
from bayeslora_cli.runs.model_card import base_in_shell, on_the_hub, path_in_python
from bayeslora_cli.tasks.task import Task

GGUF_FILE = "adapter.gguf"
BASE_FILE = "base.gguf"
"""The base model, made from transformers' files by llama.cpp's convert_hf_to_gguf.py."""
ARCHITECTURES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "starcoder2": "starcoder2",
}
"""Model types of transformers whose linear layers stand in GGUF one for one, with the
architecture's name there."""
INTERLEAVED = {"llama": ("attn_q", "attn_k")}
"""Architectures whose heads llama.cpp rotates in pairs of neighbours (2i, 2i + 1), where
transformers rotates halves (i, i + d / 2), and their matrices whose rows are ordered so."""


class GgufAdapter(Format):
    """A LoRA adapter that llama.cpp loads beside the base model's GGUF file."""

    keeps = frozenset(WEIGHTS) - {BASE}
    advice = "; --format merged needs no llama.cpp"

    def check(self, config: RunConfig) -> None:
        """Refuse architectures whose names and row orders in GGUF are not known here.

        Raises:
            UserError: it is such an architecture.
        """
        trusted = config.trust_remote_code
        kind = load_configuration(config.model, trust_remote_code=trusted).model_type
        if kind not in ARCHITECTURES:
            raise UserError(
                f"--format gguf: not known for {kind}, only for {', '.join(ARCHITECTURES)}; "
                "--format merged makes a model that llama.cpp's own converter may read"
            )

    @torch.no_grad()
    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write the file; return its rank.

        Matrices of rank 0 are left out: llama.cpp would multiply by their zeros for every token.

        Raises:
            ModelError: llama.cpp has no place for an adapted matrix.
        """
        saved = modules_to_save(network)
        if saved:
            raise ModelError(
                f"--format gguf: llama.cpp has no place for {', '.join(saved)}, which the run "
                "trained or drew; use --format merged"
            )
        bank = network.bank
        some = dict(zip(network.adapters, bank.mask.bool().any(1).tolist(), strict=True))
        factors = uniform_factors(network, bank.mean, bank.mask, ())
        kept = {name: f for name, f in factors.items() if some[name]} or factors
        _check_output_layer(network, kept)
        rank = next(iter(kept.values())).rank
        settings = network.module.config
        tensors = gguf_tensors(kept, settings)
        served = "; ".join(_commands(config.model))
        write_gguf(directory / GGUF_FILE, settings.model_type, rank, tensors, served)
        return {"largest_rank": rank}

    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Read the file with `gguf`, and lay out its matrices by transformers' reader of GGUF."""
        place = find_backbone(config.model)
        with parsed_once(place):
            return open_gguf_adapter(
                directory / GGUF_FILE,
                place.arguments,
                OBJECTIVES[task.objective].auto_class,
                device,
                trust_remote_code=config.trust_remote_code,
            )

    def description(self, options: ExportOptions) -> str:
        return "This is a LoRA adapter for llama.cpp, used with the base model in a GGUF file."

    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the adapter with llama-cpp-python."""
        standard, base = _base_in_python(config.model)
        return Snippet(
            standard=tuple(standard),
            packages=("from llama_cpp import Llama  # pip install llama-cpp-python",),
            load=(f'model = Llama({base}, lora_path=f"{{directory}}/{GGUF_FILE}")',),
            generate=(
                'tokens = inputs["input_ids"][0].tolist()',
                "answer = model.create_completion(tokens, max_tokens=100, temperature=0)",
                'print(answer["choices"][0]["text"])',
            ),
            tensors="np",
            opens_hub_names=False,
        )

    def serving(self, config: RunConfig, task: Task, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the commands of llama.cpp; with a run's own GGUF file, the one that serves it."""
        return _commands(config.model)


GGUF = GgufAdapter()


def gguf_tensors(factors: Mapping[str, LoraFactors], settings: Any) -> dict[str, Tensor]:
    """Return llama.cpp's tensors of an adapter: A (r, in) and B (out, r) of each matrix, in fp32.

    Args:
        factors: by the names of transformers' modules.
        settings: the configuration of transformers.
    Raises:
        ModelError: GGUF has no name for a matrix.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = ARCHITECTURES[settings.model_type]
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, settings.num_hidden_layers)
    tensors = {}
    for module, f in factors.items():
        name = names.get_name(module)
        if name is None:
            raise ModelError(f"--format gguf: GGUF has no name for {module}; use --format merged")
        b, matrix = f.b, kind_of(name)
        if matrix in INTERLEAVED.get(architecture, ()):
            queries = matrix == "attn_q"
            b = interleaved(
                b, settings.num_attention_heads if queries else settings.num_key_value_heads
            )
        tensors[f"{name}.weight.lora_a"] = f.a.float()
        tensors[f"{name}.weight.lora_b"] = b.float()
    return tensors


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Order the rows of each head (i, i + d / 2) as neighbours: (heads * d, ...), the same shape.

    The product W + B A of permuted rows is that of W and of B, each with permuted rows.
    """
    halves = rows.view(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path, model_type: str, rank: int, tensors: Mapping[str, Tensor], description: str
) -> None:
    """Write the file of an adapter whose alpha is its rank."""
    from gguf import GGUFType, GGUFWriter, Keys, LlamaFileType

    writer = GGUFWriter(path, ARCHITECTURES[model_type])
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_description(description)
    writer.add_file_type(LlamaFileType.ALL_F32)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.cpu().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_output_layer(network: Network, factors: Mapping[str, LoraFactors]) -> None:
    """Refuse an adapter on an output layer that is the embeddings': llama.cpp has only those."""
    output = network.module.get_output_embeddings()
    adapted = [n for n, m in network.module.named_modules() if m is output and n in factors]
    if adapted and network.module.config.tie_word_embeddings:
        raise ModelError(
            f"--format gguf: {adapted[0]} is the embeddings' weight, and a GGUF file has no output "
            "layer of its own to adapt; use --format merged"
        )


def _commands(model: str) -> tuple[str, ...]:
    """Return what serves the adapter, in its directory: llama.cpp's converter, if need be, and
    server.
    """
    serve = f"llama-server --lora {GGUF_FILE}"
    if not model.endswith(GGUF_END):
        remote = "--remote " if on_the_hub(model) else ""
        convert = f"python convert_hf_to_gguf.py {remote}{base_in_shell(model)}"
        return (f"{convert} --outfile {BASE_FILE}", f"{serve} --model {BASE_FILE}")
    if _in_a_repository(model):
        place = find_backbone(model)
        return (f"{serve} --hf-repo {place.name} --hf-file {place.gguf}",)
    return (f"{serve} --model {base_in_shell(model)}",)


def commands_of_peft(model: str) -> tuple[str, ...]:
    """Return what serves a directory of PEFT's, run there: llama.cpp's converter, and server."""
    convert = f"python convert_lora_to_gguf.py . --base {BACKBONE} --outfile {GGUF_FILE}"
    return (convert, *_commands(model))


def _in_a_repository(model: str) -> bool:
    """Return whether a GGUF file is named by its repository on the hub."""
    return not model.startswith(("package:", "/", ".", "~")) and not Path(model).exists()


def _base_in_python(model: str) -> tuple[list[str], str]:
    """Return imports and an expression: the base model's GGUF file."""
    if not model.endswith(GGUF_END):
        return [], f'"{BASE_FILE}"'
    if not _in_a_repository(model):
        return path_in_python(model)
    place = find_backbone(model)
    imports = ["from huggingface_hub import hf_hub_download"]
    return imports, f"hf_hub_download({json.dumps(place.name)}, {json.dumps(place.gguf)})"
