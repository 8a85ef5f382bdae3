"""`StoredWeights`: the tensors of safetensors files, of which only what is asked for is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


class StoredWeights:
    """Tensors by name, mapped from their files: the system reads what is copied from them."""

    def __init__(self, files: Iterable[str | Path]) -> None:
        self._files: dict[str, Any] = {}
        for file in files:
            opened: Any = safe_open(file, "pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape; None: there is no such tensor."""
        found = self._files.get(name)
        return None if found is None else tuple(found.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, mapped from its file."""
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def rows(self, names: Iterable[str], start: int, stop: int, *, like: Tensor) -> Tensor:
        """Read rows of tensors that lie one below the other.

        Args:
            start, stop: the first row, and the one behind the last, of all together.
            like: has the type and the device of the result.
        Returns:
            (stop - start, …)
        """
        parts, above = [], 0
        for name in names:
            tensor = self.tensor(name)
            first, last = (min(max(at - above, 0), len(tensor)) for at in (start, stop))
            parts.append(tensor[first:last].to(like.device, like.dtype))
            above += len(tensor)
        return torch.cat(parts)
