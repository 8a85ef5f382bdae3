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

from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS

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


def _product(count: int, heights: Sequence[int], width: int, itemsize: int, kind: str) -> int:
    """What a product of rows, (count, width), and frozen weights, (heights, width), needs."""
    return ARITHMETICS[kind].scratch(count, sum(heights), width, itemsize)


def _wide(rows: Tensor, stored: Any, heights: Sequence[int], kind: str, *_: Any) -> int:
    return _product(rows.shape[0], heights, rows.shape[1], rows.itemsize, kind)


def _later(first: Tensor, *operands: Any) -> int:
    """What an operator needs that multiplies its second argument by frozen weights."""
    return _wide(*operands)


def _middle_backward(
    grad: Tensor, kept: Tensor, h: Tensor, up: Tensor, stored: Any, heights: Sequence[int],
    kind: str, *_: Any,
) -> int:  # fmt: skip
    """The gradient of silu(g) u, (n, f), and what its product needs beyond the result, (n, 2 f).

    The product is over before the result is made.
    """
    (count, both), size = kept.shape, kept.itemsize
    product = _product(count, heights, both // 2, size, kind)
    return count * both // 2 * size + max(0, product - count * both * size)


def _narrow(slot: Tensor, product: Tensor, h: Tensor, *operands: Any) -> int:
    return _wide(product, *operands)


WORKING: Mapping[str, Callable[..., int]] = {
    "bayeslora::gated_mlp_wide": _wide,
    "bayeslora::gated_mlp_wide_backward": _later,
    "bayeslora::gated_mlp_middle_backward": _middle_backward,
    "bayeslora::gated_mlp_narrow": _narrow,
    "bayeslora::frozen_product": _wide,
    "bayeslora::frozen_product_backward": _later,
}
"""Bytes that an operator needs while it runs besides its results, from its arguments."""
