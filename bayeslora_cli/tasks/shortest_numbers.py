"""Python numbers with the fewest digits that give the same value back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def shortest_numbers(values: Tensor) -> list[Any]:
    """Return Python numbers with the tensor's own digits: 0.1, not the 0.10000000149 of fp32.

    Args:
        values: of any shape; the lists are nested accordingly.
    """
    values = values.detach().cpu()
    if not values.is_floating_point():
        return values.tolist()
    if values.dtype is not torch.float32:
        return (
            values.tolist() if values.dtype is torch.float64 else _digits(values.numpy()).tolist()
        )
    given = values.numpy()
    found = given.astype(np.float64)
    # the decimal of 6 to 9 digits that is the same fp32, where powers of ten are exact
    left = (np.abs(found) > 1e-12) & (np.abs(found) < 1e15)
    strange = ~left & (found != 0) & np.isfinite(found)
    for digits in range(6, 10):
        numbers = found[left]
        scale = 10.0 ** np.abs(shift := digits - 1 - np.floor(np.log10(np.abs(numbers))))
        up = shift >= 0
        whole = np.rint(np.where(up, numbers * scale, numbers / scale))
        short = np.where(up, whole / scale, whole * scale)
        same = short.astype(np.float32) == given[left]
        places = np.flatnonzero(left)[same]
        found.flat[places] = short[same]
        left.flat[places] = False
    strange |= left
    found[strange] = _digits(given[strange])
    result: list[Any] = found.tolist()
    return result


def _digits(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return what numpy's shortest digits of each value spell."""
    return values.astype(str).astype(np.float64)
