"""Recomputes activations of a backbone's blocks in the backward pass: all, or the cheap ones.

The cheap ones are those of norms, attention, dropout and activation functions. The results of
products with weights are kept: they cost most of the time, and a good part of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.kernels.cpu_dropout import cpu_dropout

PRODUCTS = frozenset(
    {
        "aten::mm", "aten::addmm", "aten::_scaled_mm",
        "bayeslora::low_rank_linear", "bayeslora::split_linear", "bayeslora::gated_mlp_wide",
        "bayeslora::gated_product", "bayeslora::frozen_product",
    }
)  # fmt: skip
"""Operators whose results are kept with `selective`; attention's own products are others."""
IF_NEEDED = frozenset({"bayeslora::gated_mlp_middle", "bayeslora::gated_mlp_narrow"})
"""Operators of whose results torch's compiler keeps those that are needed: h_2 in nearly all
models. Without the compiler all results or none can be kept; the large ones would be in vain."""


def recompute_blocks(module: Any, what: str, device: torch.device) -> None:
    """Have a backbone keep only its blocks' inputs for the backward pass, and what is not cheap.

    Args:
        what: blocks or selective.
    Raises:
        ModelError: the backbone does not support this.
    """
    # transformers 5.23 renamed the method; older ones know only the old name
    renamed = getattr(module, "activation_checkpointing_enable", None)
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = partial(_contexts, device)
    elif device.type in ("cpu", "meta"):
        options["context_fn"] = lambda: (nullcontext(), cpu_dropout(device))
    try:
        (renamed or module.gradient_checkpointing_enable)(options)
    except ValueError as error:
        kind = type(module).__name__
        raise ModelError(f"--gradient-checkpointing: {kind} does not support it") from error
    # transformers has embeddings ask for a gradient, which only reentrant checkpoints need: the
    # first block would compute one for nothing, and its others by another kernel than without
    module.disable_input_require_grads()


def _contexts(
    device: torch.device,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a block's forward pass and of its second one."""
    first, second = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    if device.type in ("cpu", "meta"):  # the second pass runs outside of `Network.logits`
        second = _both(second, cpu_dropout(device))
    return first, second


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.name().partition(".")[0]
    kept = name in PRODUCTS or (name in IF_NEEDED and torch.compiler.is_compiling())
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
