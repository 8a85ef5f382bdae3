"""Finds the layers of a backbone to adapt, and the modules of its head.

PEFT's rules match the layers, so that a name means the same here as in PEFT.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from peft import AdaLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from bayeslora_cli.errors import ModelError

logger = logging.getLogger("bayeslora")

HEADS = ("classifier", "score", "classification_head")  # transformers' names


def head_modules(module: Any) -> tuple[str, ...]:
    """Return the names of the head's modules.

    Raises:
        ModelError: the model's head has another name.
    """
    found = tuple(name for name, _ in module.named_children() if name in HEADS)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no head named {' or '.join(HEADS)}; choose "
            "another backbone"
        )
    return found


def inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether a dotted name is one of the modules or lies inside one."""
    return any(name == m or name.startswith(m + ".") for m in modules)


PLAIN = (nn.Linear.forward, Conv1D.forward)  # adapted layers compute these themselves


def match_targets(module: Any, head: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the layers to adapt, in the model's order; none lies in the head.

    Args:
        wanted: endings of names, or all-linear; None: PEFT's AdaLoRA targets for the backbone, or
            all linear layers if PEFT has none for it.
    Raises:
        ModelError: no layer matches, or a matching module is not a linear layer.
    """
    kind = module.config.model_type
    if wanted is None:
        wanted = TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING.get(kind)
        if wanted is None:
            logger.info("PEFT knows no AdaLoRA targets for %s: adapting all linear layers", kind)
            wanted = ("all-linear",)
    if isinstance(wanted, str):
        wanted = (wanted,)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    if list(wanted) == ["all-linear"]:
        names = list(linear)
    else:
        config = AdaLoraConfig(target_modules=list(wanted), total_step=1)
        names = [
            n for n, _ in module.named_modules() if n and check_target_module_exists(config, n)
        ]
    names = [n for n in names if not inside(n, head)]
    other = [n for n in names if n not in linear or type(linear[n]).forward not in PLAIN]
    flag = f"--target-modules {','.join(wanted)}"
    if other:
        own = " with torch's own forward pass" if other[0] in linear else ""
        raise ModelError(f"{flag}: {other[0]} is no linear layer{own}; name layers that are")
    if not names:
        endings = sorted({n.rpartition(".")[2] for n in linear if not inside(n, head)})
        raise ModelError(f"{flag}: no layer of {kind} matches; it has {', '.join(endings)}")
    return names
