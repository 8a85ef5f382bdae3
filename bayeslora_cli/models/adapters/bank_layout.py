"""Where each parameter lies in the bank's flat buffer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 256 // 4  # elements of fp32: cuBLAS and vectorised kernels like 256-byte starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """One adapted matrix's own parameters: W0 + scale B diag(E) A."""

    name: str
    a: nn.Parameter  # (r, in)
    b: nn.Parameter  # (out, r)
    e: nn.Parameter | None = None  # (r, 1); None for plain LoRA


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Where one parameter lies in the buffers."""

    name: str
    role: str
    """adapter, full, head, gate, range or fixed."""
    shape: tuple[int, ...]
    offset: int

    @property
    def stop(self) -> int:
        """First element after the segment."""
        return self.offset + torch.Size(self.shape).numel()

    def view(self, buffer: Tensor) -> Tensor:
        """This segment of a flat buffer (N,), in its own shape, without a copy."""
        return buffer[self.offset : self.stop].view(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeGroup:
    """Matrices of one shape: where their stacked A and B lie."""

    members: tuple[int, ...]
    """Indices into the bank's matrices, in the model's order."""
    a: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, stride and offset of A, (G, r, in)."""
    b: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, stride and offset of B, (G, out, r)."""

    def view_a(self, buffer: Tensor) -> Tensor:
        """All A of the group in a flat buffer: (G, r, in), no copy."""
        return buffer.as_strided(*self.a)

    def view_b(self, buffer: Tensor) -> Tensor:
        """All B of the group in a flat buffer: (G, out, r), no copy."""
        return buffer.as_strided(*self.b)


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT
