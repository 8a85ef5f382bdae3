"""Finds the layers of a backbone to adapt, and the modules of its head.

PEFT's rules match the layers, so that a name means the same here as in PEFT. It is imported only
where they are needed, since that takes seconds: a finished run names its layers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from bayeslora_cli.errors import ModelError

logger = logging.getLogger("bayeslora")

ALL_LINEAR = "all-linear"
"""PEFT's name for all linear layers but the output layer of a language model."""
# what transformers calls them; `sequence_summary` is XLM's and Flaubert's
HEADS = ("classifier", "score", "classification_head", "sequence_summary")


def head_modules(module: Any) -> tuple[str, ...]:
    """Return the names of the head's modules.

    Raises:
        ModelError: the model's head has another name, or reads the last position (XLNet's), which
            is padding in batches padded on the right.
    """
    found = tuple(name for name, _ in module.named_children() if name in HEADS)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no head named {' or '.join(HEADS)}; choose "
            "another backbone"
        )
    summary = getattr(module, "sequence_summary", None)
    if summary is not None and summary.summary_type != "first":
        raise ModelError(
            f"{type(module).__name__} classifies by its {summary.summary_type} position, which is "
            "padding in batches padded on the right; choose another backbone"
        )
    return found


def inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether a dotted name is one of the modules or lies inside one."""
    return any(name == m or name.startswith(m + ".") for m in modules)


PLAIN = (nn.Linear.forward, Conv1D.forward)  # adapted layers compute these themselves


def is_adaptable(layer: Any) -> bool:
    """Return whether a layer computes x W' + bias: torch's and transformers' own layers do.

    A subclass with another forward pass, such as FalconLinear, is tried on small numbers.
    """
    if not isinstance(layer, (nn.Linear, Conv1D)):
        return False
    if type(layer).forward in PLAIN:
        return True
    known = layer._parameters.keys() <= {"weight", "bias"}
    if not isinstance(layer, nn.Linear) or not known or layer._buffers or layer._modules:
        return False
    trial = copy(layer)
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(28, generator=generator, device="cpu")
    weight, bias, x = drawn[:15].view(3, 5), drawn[15:18], drawn[18:].view(1, 2, 5)
    wanted = {"weight": weight, "bias": None if layer.bias is None else bias}
    trial._parameters = {
        name: None if value is None else nn.Parameter(value) for name, value in wanted.items()
    }
    trial.in_features, trial.out_features = 5, 3
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            found = [trial.train(mode)(x) for mode in (True, False)]
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    right = F.linear(x, weight, wanted["bias"])
    return all(isinstance(y, Tensor) and torch.allclose(y, right, atol=1e-5) for y in found)


def recorded_targets(module: Any, recorded: Sequence[str]) -> list[str] | None:
    """Return the layers that a finished run has adapted, in the model's order.

    Returns:
        None: there are none, or the model lacks one of them.
    """
    known = set(recorded)
    found = [n for n, layer in module.named_modules() if n in known and is_adaptable(layer)]
    return found if found and len(found) == len(known) else None


def match_targets(module: Any, head: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the layers to adapt, in the model's order; none lies in the head.

    Args:
        wanted: endings of names, or all-linear, which leaves out the output layer of a language
            model; None: for a language model all linear layers of its blocks, except routers of
            experts, for other backbones PEFT's AdaLoRA targets, or all linear layers if PEFT has
            none. Layers that None or all-linear matches and that cannot be adapted are left out,
            with a warning.
    Raises:
        ModelError: no layer matches, or a named one is not a linear layer.
    """
    named = wanted is not None and list(wanted) != [ALL_LINEAR]
    linear = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    endings, matching = _matching(module, linear, wanted)
    names = [n for n in matching if not inside(n, head)]
    other = [n for n in names if not is_adaptable(linear.get(n))]
    flag = f"--target-modules {','.join(endings)}"
    if other and not named:
        skipped, names = other, [n for n in names if n not in set(other)]
        if not names:
            raise ModelError(
                f"{type(module).__name__} has no layer that can be adapted: {skipped[0]} computes "
                "something else than a linear layer; --method full trains it whole"
            )
        logger.warning(
            "not adapted: %d layers that compute something else than a linear layer, %s for one",
            len(skipped), skipped[0],
        )  # fmt: skip
    elif other:
        own = " with torch's own forward pass" if other[0] in linear else ""
        raise ModelError(f"{flag}: {other[0]} is not a linear layer{own}; name layers that are")
    if not names and all(inside(n, head) for n in linear):
        raise ModelError(
            f"{type(module).__name__} has no linear layers to adapt, only layers of its own; "
            "--method full trains it whole"
        )
    if not names:
        kind = module.config.model_type
        has = sorted({n.rpartition(".")[2] for n in linear if not inside(n, head)})
        raise ModelError(f"{flag}: no layer of {kind} matches; it has {', '.join(has)}")
    return names


def _matching(
    module: Any, linear: Mapping[str, Any], wanted: Sequence[str] | None
) -> tuple[Sequence[str], list[str]]:
    """Return the wanted endings, those that None stands for too, and the names that they match.

    Args:
        linear: the linear layers by name.
    """
    output = module.get_output_embeddings()  # None: this is no language model
    within = [n for n, layer in linear.items() if layer is not output]
    if wanted is None and output is not None:
        return [ALL_LINEAR], _of_the_blocks(module, within)
    if wanted is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING

        kind = module.config.model_type
        wanted = TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING.get(kind)
        if wanted is None:
            logger.info("PEFT knows no AdaLoRA targets for %s: adapting all linear layers", kind)
            wanted = [ALL_LINEAR]
    endings = [wanted] if isinstance(wanted, str) else list(wanted)
    if endings == [ALL_LINEAR]:
        return endings, within
    from peft import AdaLoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = AdaLoraConfig(target_modules=endings, total_step=1)
    return endings, [
        n for n, _ in module.named_modules() if n and check_target_module_exists(config, n)
    ]


def quantizable(module: Any, head: Sequence[str]) -> list[str]:
    """Return the names of the layers whose weights may be quantized: the blocks' linear layers.

    Embeddings, the output layer, the head and routers of experts keep their precision.
    """
    output = module.get_output_embeddings()
    linear = [n for n, m in module.named_modules() if m is not output and is_adaptable(m)]
    owners = {n.rpartition(".")[0] for n, _ in module.named_modules() if n.endswith(".experts")}
    return [
        n
        for n in linear
        if any(part.isdigit() for part in n.split("."))
        and not inside(n, head)
        and n.rpartition(".")[0] not in owners
    ]


def plain_products(module: Any) -> int:
    """Count the multiplications per token of the linear layers that have no adapter.

    The output layer is among them, also where its weight is the embeddings'. Routers, and experts
    that are one tensor, are not.
    """
    layers = (m for m in module.modules() if isinstance(m, (nn.Linear, Conv1D)))
    return sum(layer.weight.numel() for layer in layers)


def _of_the_blocks(module: Any, linear: Sequence[str]) -> list[str]:
    """Return those linear layers that lie in a repeated block and are no routers of experts.

    Warns of routers, which are layers beside experts, and of experts that are tensors (experts,
    out, in), which no adapted layer holds.
    """
    owners = {n.rpartition(".")[0] for n, _ in module.named_modules() if n.endswith(".experts")}
    routers = [
        name
        for name, layer in module.named_modules()
        if name.rpartition(".")[0] in owners
        and (name in linear or "Router" in type(layer).__name__)
    ]
    experts = [
        n for n, p in module.named_parameters() if p.ndim == 3 and n.split(".")[-2] == "experts"
    ]
    found = {"tensors that hold all experts of a layer": experts, "routers": routers}
    said = [f"{len(names)} {what}, {names[0]} for one" for what, names in found.items() if names]
    if said:
        logger.warning("not adapted: %s", "; ".join(said))
    return [n for n in linear if n not in routers and any(p.isdigit() for p in n.split("."))]
