"""Spearman's rank correlation, for scores and for allocations, with numpy only.

scipy's is not used here: importing `scipy.stats` takes a second, and `inspect-ranks` needs nothing
else of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def spearman(x: Floats, y: Floats) -> float | None:
    """Return the correlation, from -1 to 1, with mean ranks for ties; None: `x` or `y` is constant.

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
