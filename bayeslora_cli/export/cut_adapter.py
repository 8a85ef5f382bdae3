"""Cuts a LoRA or AdaLoRA adapter of PEFT's to fewer ranks, without its model and without training.

All matrices' products are decomposed, and the largest singular values of all are kept (PARA, arXiv
2604.27796). The result is a plain LoRA adapter in the form that all readers understand: one rank
for all matrices, padded with zeros, and alpha = r.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.methods.cutting import singular_factors
from bayeslora_cli.models.adapters.layer import RANK_EPSILON
from bayeslora_cli.runs.atomic_write import replacing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(r"(?P<matrix>.+)\.lora_(?P<part>[ABE])(\.weight)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter's products and what else its files hold."""

    config: dict[str, Any]
    factors: dict[str, tuple[Tensor, Tensor]]
    """For each matrix `up` (out, k), which has the scale, and `down` (k, in), of the k ranks that
    are neither padding nor pruned."""
    others: dict[str, Tensor]
    """Further tensors, such as a classifier's head."""


def read_adapter(directory: Path) -> Adapter:
    """Read a LoRA or AdaLoRA adapter.

    Raises:
        UserError: there is none, or it is of a kind whose products are not B A or B diag(E) A.
    """
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(directory / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{directory}: is no adapter with {CONFIG} and {WEIGHTS} that can be read: {error}"
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in ("LORA", "ADALORA") or config.get("use_dora"):
        name = "DoRA" if kind == "LORA" else kind
        raise UserError(f"{directory}: is an adapter of kind {name}; LoRA and AdaLoRA can be read")
    parts: dict[str, dict[str, Tensor]] = {}
    others = {}
    for name, tensor in tensors.items():
        found = _FACTOR.fullmatch(name)
        if found is None:
            if ".lora_" in name and "ranknum" not in name:
                raise UserError(f"{directory}: {name} is no factor of a linear layer")
            if "ranknum" not in name:
                others[name] = tensor
            continue
        parts.setdefault(found["matrix"], {})[found["part"]] = tensor.float()
    factors = {}
    for matrix, own in parts.items():
        a, b = own.get("A"), own.get("B")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
            raise UserError(f"{directory}: the factors of {matrix} do not fit each other")
        e = own.get("E")
        down = a if e is None else a * e.view(-1, 1)
        used = (down != 0).any(1)  # others are padding, or pruned
        factors[matrix] = (b[:, used] * scale_of(config, matrix, len(a)), down[used])
    if not factors:
        raise UserError(f"{directory}: {WEIGHTS} has no factors lora_A and lora_B")
    return Adapter(config=config, factors=factors, others=others)


def scale_of(config: dict[str, Any], matrix: str, rank: int) -> float:
    """Return the factor of a matrix's product, as PEFT computes it."""
    if config["peft_type"] == "ADALORA":  # the initial rank, whatever was pruned since
        return float(config["lora_alpha"] / (config.get("init_r", rank) + RANK_EPSILON))
    module = matrix.removeprefix("base_model.model.")
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def cut_adapter(
    directory: Path, target_rank: int, output: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Cut an adapter to a mean rank per matrix; write a LoRA adapter.

    Returns:
        `matrices`, `ranks` by matrix, and `kept`: the share of the products' squared Frobenius norm
        that is left.
    Raises:
        UserError: the adapter cannot be read or has fewer ranks, or `output` cannot be written.
    """
    adapter = read_adapter(directory)
    found = {name: singular_factors(*factors) for name, factors in adapter.factors.items()}
    wanted = target_rank * len(found)
    values = torch.cat([v for _, v, _ in found.values()])
    owners = torch.cat([torch.full((len(v),), i) for i, (_, v, _) in enumerate(found.values())])
    if wanted > len(values):
        raise UserError(
            f"--target-rank {target_rank}: for {len(found)} matrices these are {wanted} ranks, the "
            f"adapter has {len(values)}; give {len(values) // len(found)} or less"
        )
    if output.exists():
        ours = (output / CONFIG).is_file() and output.resolve() != directory.resolve()
        if not (overwrite and ours):
            raise RunDirError(f"{output} exists; give another --output, or --overwrite")
    best = values.argsort(descending=True, stable=True)[:wanted]
    ranks = torch.bincount(owners[best], minlength=len(found)).tolist()
    most = max(1, *ranks)
    tensors = dict(adapter.others)
    for (name, (u, own, v)), rank in zip(found.items(), ranks, strict=True):
        a, b = torch.zeros(most, v.shape[1]), torch.zeros(len(u), most)
        root = own[:rank].sqrt()
        a[:rank], b[:, :rank] = root[:, None] * v[:rank], u[:, :rank] * root
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
    config = _as_lora(adapter.config) | {"r": most, "lora_alpha": most}
    with replacing(output) as temporary:
        temporary.mkdir()
        for file in directory.iterdir():  # a tokenizer and the like
            if file.is_file() and file.name not in (CONFIG, WEIGHTS):
                shutil.copyfile(file, temporary / file.name)
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {
        "matrices": len(found),
        "ranks": dict(zip(found, ranks, strict=True)),
        "kept": float(values[best].square().sum() / values.square().sum().clamp(min=1e-300)),
    }


def _as_lora(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a LoRA adapter that has one scale, of 1, for all matrices."""
    of_adalora = (
        "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
        "total_step",
    )  # fmt: skip
    found = {name: value for name, value in config.items() if name not in of_adalora}
    return found | {
        "peft_type": "LORA", "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False,
    }  # fmt: skip
