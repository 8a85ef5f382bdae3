"""`BankLayout`: where each parameter lies in the bank's flat buffers. It holds no tensors.

Each block starts at a multiple of 256 bytes:

    E (n, r)                         all singular values, matrices in the model's order
    A (G, r, in), B (G, out, r)      one pair per group of equal shapes, in the model's order
    full                             backbone weights that are trained themselves
    head                             always computed in fp32
    gate, range, fixed               B-LoRA's gates and ranges, and untrained constants, in fp32

The singular values of all matrices are adjacent, so that masking, scoring and sorting all triplets
need no gathering. A and B are grouped by shape, so that one batched product serves a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

ALIGNMENT = 256 // 4  # elements of fp32: cuBLAS and vectorised kernels like 256-byte starts
ROLES = ("full", "head", "gate", "range", "fixed")
"""Roles of parameters outside the adapters, in their order in the buffer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Parameters of one adapted matrix, W0 + scale B diag(E) A."""

    name: str
    a: nn.Parameter  # (r, in)
    b: nn.Parameter  # (out, r)
    e: nn.Parameter | None = None  # (r, 1); None for plain LoRA

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return its parameters by their names in the bank."""
        own = {"A": self.a, "B": self.b, "E": self.e}
        return {f"{self.name}.lora_{part}": p for part, p in own.items() if p is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Where one parameter lies in the buffers."""

    name: str
    role: str
    """One of adapter, full, head, gate, range, fixed."""
    shape: tuple[int, ...]
    offset: int

    @property
    def stop(self) -> int:
        """First element after the segment."""
        return self.offset + torch.Size(self.shape).numel()

    def view(self, buffer: Tensor) -> Tensor:
        """View this segment of a flat buffer (N,), in its own shape."""
        return buffer[self.offset : self.stop].view(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeGroup:
    """Matrices of one shape, and where their stacked A and B lie."""

    members: tuple[int, ...]
    """Indices into the bank's matrices, in the model's order."""
    a: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, stride and offset of A, (G, r, in)."""
    b: tuple[tuple[int, ...], tuple[int, ...], int]
    """Size, stride and offset of B, (G, out, r)."""

    def view_a(self, buffer: Tensor) -> Tensor:
        """View all A of the group in a flat buffer: (G, r, in)."""
        return buffer.as_strided(*self.a)

    def view_b(self, buffer: Tensor) -> Tensor:
        """View all B of the group in a flat buffer: (G, out, r)."""
        return buffer.as_strided(*self.b)


@dataclass(frozen=True, kw_only=True, slots=True)
class BankLayout:
    """Order and sizes of the parameters in a flat buffer (N,) of the bank."""

    matrices: tuple[str, ...]
    """Names of the n adapted matrices, in the model's order."""
    rank: int
    """r, the rank of every matrix at the start; 0 without matrices."""
    has_singular_values: bool
    """Whether the matrices have singular values E."""
    segments: dict[str, Segment]
    """Segments by parameter name, in the buffer's order."""
    groups: tuple[ShapeGroup, ...]
    adapter_end: int
    """First element after the adapters."""
    parts: dict[str, slice]
    """Slice of each other role."""
    size: int
    """N, padding included."""

    @property
    def weights(self) -> slice:
        """Slice of the weights: everything but gates, ranges and untrained constants."""
        return slice(0, self.parts["head"].stop)

    def singular_values(self, buffer: Tensor) -> Tensor:
        """View E of all matrices in a flat buffer (N,): (n, r), in the model's order."""
        assert self.has_singular_values
        shape = len(self.matrices), self.rank
        return buffer[: shape[0] * shape[1]].view(shape)

    def triplet_scores(self, scores: Tensor, order: Tensor) -> Tensor:
        """Compute S = s(E) + mean_j s(A_ij) + mean_k s(B_ki): element scores (N,) -> (n, r).

        Args:
            order: the result of `order_of_scores`, on the scores' device.
        """
        vectors = torch.cat(
            [g.view_a(scores).mean(-1) + g.view_b(scores).mean(-2) for g in self.groups]
        )
        return self.singular_values(scores) + vectors[order]

    def order_of_scores(self) -> Tensor:
        """Return each matrix's position, in model order, among the concatenated groups: (n,)."""
        by_group = [index for group in self.groups for index in group.members]
        order = torch.empty(len(by_group), dtype=torch.long)
        order[torch.tensor(by_group, dtype=torch.long)] = torch.arange(len(by_group))
        return order


def lay_out(
    matrices: Sequence[Matrix], others: Sequence[tuple[str, str, nn.Parameter]]
) -> BankLayout:
    """Compute the layout of a bank.

    Args:
        matrices: adapted matrices, all of one rank, in the model's order.
        others: (name, role, parameter) of parameters outside the adapters.
    """
    rank = matrices[0].a.shape[0] if matrices else 0
    assert all(m.a.shape[0] == m.b.shape[1] == rank for m in matrices)
    has_singular_values = bool(matrices) and all(m.e is not None for m in matrices)
    segments: dict[str, Segment] = {}

    def append(name: str, role: str, shape: tuple[int, ...], offset: int) -> int:
        assert name not in segments, f"two parameters named {name}"
        segments[name] = Segment(name=name, role=role, shape=shape, offset=offset)
        return _aligned(segments[name].stop)

    end = 0
    if has_singular_values:
        for index, matrix in enumerate(matrices):
            append(f"{matrix.name}.lora_E", "adapter", (rank, 1), index * rank)
        end = _aligned(len(matrices) * rank)

    def shape_of(index: int) -> tuple[int, int]:
        return matrices[index].a.shape[1], matrices[index].b.shape[0]

    groups = []
    for (width, height), found in groupby(sorted(range(len(matrices)), key=shape_of), key=shape_of):
        members = tuple(found)
        blocks = []
        for part, shape in (("A", (rank, width)), ("B", (height, rank))):
            strides = (_aligned(shape[0] * shape[1]), shape[1], 1)
            blocks.append(((len(members), *shape), strides, end))
            for index in members:
                end = append(f"{matrices[index].name}.lora_{part}", "adapter", shape, end)
        groups.append(ShapeGroup(members=members, a=blocks[0], b=blocks[1]))
    adapter_end = end
    parts = {}
    for role in ROLES:
        start = end
        for name, _, parameter in (other for other in others if other[1] == role):
            end = append(name, role, tuple(parameter.shape), end)
        parts[role] = slice(start, end)
    return BankLayout(
        matrices=tuple(m.name for m in matrices),
        rank=rank,
        has_singular_values=has_singular_values,
        segments=segments,
        groups=tuple(groups),
        adapter_end=adapter_end,
        parts=parts,
        size=end,
    )


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT
