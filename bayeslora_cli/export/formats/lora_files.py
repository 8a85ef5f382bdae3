"""Plain LoRA adapters in PEFT's format: one rank for all matrices, or a rank per matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.export.formats.adapter_files import (
    common_arguments,
    modules_to_save,
    saved_whole,
    write_adapter,
)
from bayeslora_cli.export.formats.format import kept_factors
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.plain_lora import (
    LoraFactors,
    fold,
    fold_into_b,
    kind_of,
    plain_number,
    uniform,
    without_empty,
    without_empty_kinds,
)
from bayeslora_cli.models.backbones.targets import inside


@torch.no_grad()
def save_uniform_adapter(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path
) -> int:
    """Write the adapter as plain LoRA in the form that every reader understands.

    All matrices have one rank, padded with zeros, alpha is that rank, and B holds the scale. Some
    readers have one scale alpha / r for all matrices (vLLM before 0.32), others (llama.cpp) divide
    one alpha by each matrix's own rank; with this form both, and PEFT, multiply by 1.
    `target_modules` has the kinds of the matrices if no other layer has such a name.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
    Returns:
        The rank.
    Raises:
        ModelError: the checkpoint lacks all adapted matrices.
    """
    saved = modules_to_save(network)
    factors = uniform_factors(network, mean, mask, saved)
    kinds = {kind_of(name) for name in factors}
    alike = {name for name, _ in network.module.named_modules() if kind_of(name) in kinds}
    rank = next(iter(factors.values())).rank
    targets = list(kinds if alike == factors.keys() else factors)
    common = common_arguments(network.objective.entry, config, targets, saved) | {
        "lora_alpha": rank
    }
    _write_lora(network, LoraConfig(r=rank, **common), factors, mean, mask, directory)
    return rank


def uniform_factors(
    network: Network, mean: Tensor, mask: Tensor, saved: Sequence[str]
) -> dict[str, LoraFactors]:
    """Return the factors of each matrix at one rank for all, with alpha = r.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
        saved: modules to leave out, which are saved whole.
    Raises:
        ModelError: no matrix is left.
    """
    factors = {
        name: fold_into_b(*parts, network.adapters[name].scale)
        for name, parts in kept_factors(network, mean, mask).items()
        if not inside(name, saved)
    }
    _check_any(network, factors)
    return uniform(without_empty_kinds(factors))


@torch.no_grad()
def save_patterned_adapter(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path
) -> int:
    """Write the adapter as plain LoRA with a rank and an alpha per matrix, for PEFT.

    Matrices that kept no rank are left out.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
    Returns:
        The largest rank.
    Raises:
        ModelError: the checkpoint lacks all adapted matrices.
    """
    saved = modules_to_save(network)
    factors = without_empty(
        {
            name: fold(*parts, network.adapters[name].scale)
            for name, parts in kept_factors(network, mean, mask).items()
            if not inside(name, saved)
        }
    )
    _check_any(network, factors)
    widest = max(factors.values(), key=lambda f: f.rank)
    ranks = {name: f.rank for name, f in factors.items()}
    alphas = {name: plain_number(f.alpha) for name, f in factors.items()}
    usual = plain_number(widest.alpha)
    peft = LoraConfig(
        r=widest.rank,
        rank_pattern={n: r for n, r in ranks.items() if r != widest.rank},
        alpha_pattern={n: alpha for n, alpha in alphas.items() if alpha != usual},
        **common_arguments(network.objective.entry, config, list(factors), saved)
        | {"lora_alpha": usual},
    )
    _write_lora(network, peft, factors, mean, mask, directory)
    return widest.rank


def _check_any(network: Network, factors: Mapping[str, LoraFactors]) -> None:
    if not factors:
        raise ModelError(
            f"the checkpoint lacks {', '.join(network.adapters)}, which an adapter saves whole: no "
            "low-rank adapter is left; use --format merged"
        )


def _write_lora(
    network: Network, peft: LoraConfig, factors: Mapping[str, LoraFactors], mean: Tensor,
    mask: Tensor, directory: Path,
) -> None:  # fmt: skip
    """Write plain LoRA's files, with the modules that are saved whole."""
    state = {f"{name}.lora_A.weight": f.a for name, f in factors.items()}
    state |= {f"{name}.lora_B.weight": f.b for name, f in factors.items()}
    whole = saved_whole(network, mean, mask, list(peft.modules_to_save or ()))
    write_adapter(network, peft, state | whole, directory)
