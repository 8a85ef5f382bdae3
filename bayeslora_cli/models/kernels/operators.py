"""Registers operators under `torch.ops.bayeslora`, which torch's compiler does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.library import Library, register_autograd, register_fake

# not `custom_op`: its first call imports the compiler, which takes a second and is unused on a CPU
_LIBRARY: Any = Library("bayeslora", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(
    name: str,
    signature: str,
    compute: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    keep: Callable[..., None] | None = None,
    differentiate: Callable[..., Any] | None = None,
) -> None:
    """Make an operator.

    Args:
        name: it is called as `torch.ops.bayeslora.NAME`.
        signature: arguments and results in torch's schema language: "(Tensor x) -> Tensor".
        compute: the operator on every device.
        shapes: the same on tensors without values: returns new ones like the results.
        keep: keeps in `ctx` what the backward pass needs; gets `ctx`, the inputs and the results.
        differentiate: returns a gradient, or None, for each input; gets `ctx` and the gradients of
            the results. None: the operator is not differentiable.
    """
    _LIBRARY.define(name + signature)
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    register_fake(f"bayeslora::{name}", shapes, lib=_LIBRARY)
    if differentiate is not None:
        register_autograd(f"bayeslora::{name}", differentiate, setup_context=keep, lib=_LIBRARY)
