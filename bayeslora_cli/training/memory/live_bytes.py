"""Follows the memory of a computation on fake tensors: what is there at the same time, at most."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""Bytes that torch's allocator on a GPU rounds a tensor's memory up to."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are made inside, as long as they live.

    Operators of ours that torch does not look into need more memory while they run, which `WORKING`
    knows.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known`: tensors that are there before, and are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: dict[int, Any] = {}
        for tensor in known:
            self._watch(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._seen:
                    self._watch(storage, -(-storage.nbytes() // BLOCK) * BLOCK)
        working = WORKING.get(func.name().partition(".")[0])
        more = 0 if working is None else working(*args)
        self.peak = max(self.peak, self.now + more)
        return out

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self.now += size
        self._seen[key] = weakref.ref(storage, partial(self._forget, key, size))

    def _forget(self, key: int, size: int, _: Any) -> None:
        self._seen.pop(key, None)
        self.now -= size


def _gated_mlp(rows: Tensor, *operands: Any) -> int:
    """silu(g) u, (n, f)."""
    return rows.shape[0] * int(operands[4].shape[1]) * rows.itemsize


def _gated_mlp_backward(grad: Tensor, *operands: Any) -> int:
    """The gradients of silu(g) u, (n, f), and of [g, u], (n, 2 f)."""
    return 3 * grad.shape[0] * int(operands[4].shape[1]) * grad.itemsize


def _frozen_product(rows: Tensor, stored: Any, heights: Sequence[int], *_: Any) -> int:
    """The dense weights of all layers of the product."""
    return sum(heights) * rows.shape[1] * rows.itemsize


def _frozen_product_backward(grad: Tensor, rows: Tensor, *operands: Any) -> int:
    return _frozen_product(rows, *operands)


WORKING: Mapping[str, Callable[..., int]] = {
    "bayeslora::gated_mlp": _gated_mlp,
    "bayeslora::gated_mlp_backward": _gated_mlp_backward,
    "bayeslora::frozen_product": _frozen_product,
    "bayeslora::frozen_product_backward": _frozen_product_backward,
}
"""Bytes that an operator needs while it runs besides its results, from its arguments."""
