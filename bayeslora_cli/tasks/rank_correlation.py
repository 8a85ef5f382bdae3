"""Spearman's rank correlation, for scores and for allocations, with numpy only.

Not scipy's: `scipy.stats` takes a second to import, which `inspect-ranks` has no other use for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def spearman(x: Floats, y: Floats) -> float | None:
    """From -1 to 1, ties sharing their mean place; None: all of `x` or all of `y` are the same.

    Args:
        x: (n,), finite.
        y: (n,), finite.
    """
    a, b = _places(x), _places(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _places(values: Floats) -> Floats:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[which], dtype=float)
