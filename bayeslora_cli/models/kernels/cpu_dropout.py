"""Dropout on a CPU from 16 random bits per element.

torch draws a whole random number per element, which takes an eighth of a training step of MiniLM.
This version drops an element with probability d = round(65536 p) / 65536, within 1e-5 of p, and
divides the others by 1 - d: the expectation is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WHOLE = 2**16


def cpu_dropout(device: torch.device) -> AbstractContextManager[Any]:
    """Make `torch.nn.functional`'s dropout and attention draw 16 bits per element on a CPU.

    On other devices nothing changes. The bits come from torch's own generator, in an order that
    does not depend on the number of threads.

    Args:
        device: the tensors'; meta: of a network whose pass runs on fake tensors of any device.
    """
    return _Mode() if device.type in ("cpu", "meta") else nullcontext()


class _Mode(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _OURS.get(func, func)(*args, **(kwargs or {}))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    below = round(p * WHOLE)
    if not training or inplace or not 0 < below < WHOLE or x.device.type != "cpu":
        return F.dropout(x, p, training, inplace)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = (bits.view(torch.int16)[: x.numel()] >= below - WHOLE // 2).view(x.shape)
    return (x * kept).mul_(WHOLE / (WHOLE - below))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if not dropout_p or is_causal or enable_gqa or q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:  # a row without any key gives zeros
        is_seen = attn_mask.dtype == torch.bool
        blocked = ~attn_mask if is_seen else attn_mask == -torch.inf
        scores = scores if is_seen else scores + attn_mask
        least = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(blocked, least).softmax(-1).masked_fill(blocked, 0.0)
    return _dropout(weights, dropout_p) @ v


_OURS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
}
