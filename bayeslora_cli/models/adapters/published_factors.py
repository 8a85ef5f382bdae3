"""The factors that adapted layers multiply with: folded from theta and cast, once per pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import ShapeGroup
from bayeslora_cli.models.adapters.layer import JointLinear, LowRankLinear

# a GPU's matrix products need rows of 16 bytes: with a rank of 3 they take three times as long
ROW_BYTES = 16


def padded_rank(rank: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the rank that products are computed with: on a GPU, padded to whole `ROW_BYTES`."""
    unit = ROW_BYTES // dtype.itemsize if device.type == "cuda" else 1
    return -(-rank // unit) * unit


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The matrices of one shape in each of a stack's U units: m neighbours in every unit."""

    group: ShapeGroup
    members: Tensor
    """Indices of the bank's matrices: (U, m) int64."""
    places: Tensor
    """Their positions in the group: (U m,) int64."""
    scale: Tensor
    """Scale of each matrix's adapter: (U, m, 1, 1)."""
    rank: int
    """First row of `down` that belongs to the part."""
    row: int
    """First row of `up`, an output, that belongs to the part."""

    def rows(self, down: Tensor, rank: int) -> Tensor:
        """Split `down`, or its gradient, by matrix: (U, m, r, in), no copy."""
        many = self.members.shape[1]
        own = down[:, self.rank : self.rank + many * rank]
        return own.view(len(down), many, rank, -1)

    def blocks(self, up: Tensor, rank: int, height: int) -> list[Tensor]:
        """Split `up`, or its gradient, into one block per matrix: (U, out, r) each, no copy."""
        starts = [
            (self.row + i * height, self.rank + i * rank) for i in range(self.members.shape[1])
        ]
        return [up[:, row : row + height, at : at + rank] for row, at in starts]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stack:
    """Factors of U units with matrices of the same shapes: layers, or joints of several layers."""

    parts: tuple[_Part, ...]
    down: Tensor
    """(U, padded r of all matrices, in), with r rows for each matrix."""
    up: Tensor
    """(U, outputs of all matrices, padded r of all), the matrices on the diagonal."""
    leaves: tuple[list[Tensor], list[Tensor]]
    """Views of `down` and `up`, one tensor per unit, that the layers compute with."""


_Unit = tuple[LowRankLinear | JointLinear, list[int]]
"""A layer or a joint, and the indices of its matrices in the bank."""


class PublishedFactors:
    """Factors down = scale diag(E) A, (r, in), and up = B, (out, r), of every matrix.

    Matrices of one shape share a stack. On a GPU the rank is padded with zeros to whole rows of
    `ROW_BYTES`, which changes no result. `collect` returns the gradients: dA = scale E d(down),
    dE = scale (d(down) . A) per row, dB = d(up).
    """

    def __init__(
        self,
        bank: AdapterBank,
        layers: Sequence[LowRankLinear],
        dtype: torch.dtype,
        joints: Sequence[JointLinear] = (),
    ) -> None:
        """`layers`: one per matrix of the bank, in its order; each layer or joint gets factors."""
        self.bank, self.dtype, self.joints = bank, dtype, tuple(joints)
        self.buffers: list[Tensor] = []
        """All tensors kept between steps; gradients live from one backward pass to the next."""
        number = {id(layer): index for index, layer in enumerate(layers)}
        joined = [[number[id(layer)] for layer in joint.layers] for joint in joints]
        single = sorted(set(number.values()).difference(*joined))
        units: list[_Unit] = [(layers[index], [index]) for index in single]
        joint_units: list[_Unit] = list(zip(joints, joined, strict=True))
        scales = torch.tensor([layer.scale for layer in layers], device=bank.theta.device)
        self._stacks = []
        self._group = {i: group for group in bank.groups for i in group.members}
        for kind in (units, joint_units):
            alike: dict[Hashable, list[_Unit]] = {}
            for owner, ids in kind:
                key = tuple(id(self._group[i]) for i in ids), type(owner.base_layer)
                alike.setdefault(key, []).append((owner, ids))
            self._stacks += [self._stack(found, scales) for found in alike.values()]
        self.publish()

    def _stack(self, units: Sequence[_Unit], scales: Tensor) -> _Stack:
        """Build the stack of units of one form, and give each unit its factors."""
        owners, members = zip(*units, strict=True)
        device, form = self.bank.theta.device, type(owners[0].base_layer)
        rank = padded_rank(len(members[0]) * self.bank.rank, self.dtype, device)
        forms = [owner.base_layer for owner in owners]
        down, up = form.place_factors(forms, rank, self.dtype, device)
        self.buffers += [down, up]
        stack = _Stack(
            parts=tuple(self._parts(members, scales)),
            down=down,
            up=up,
            leaves=(
                [x.detach().requires_grad_() for x in down],
                [x.detach().requires_grad_() for x in up],
            ),
        )
        for owner, *leaves in zip(owners, *stack.leaves, strict=True):
            owner.down, owner.up = leaves
        return stack

    def _parts(self, members: Sequence[list[int]], scales: Tensor) -> Iterator[_Part]:
        """Yield runs of matrices of one shape; the units' matrices have the same shapes in order.

        Args:
            members: the bank's matrices of each unit.
        """
        device, rank, row = self.bank.theta.device, 0, 0
        first = [self._group[matrix] for matrix in members[0]]
        for _, run in groupby(range(len(first)), lambda place: id(first[place])):
            at = list(run)
            group, own = first[at[0]], [[ids[place] for place in at] for ids in members]
            indices = torch.tensor(own, device=device)
            yield _Part(
                group=group,
                members=indices,
                places=torch.tensor([group.members.index(i) for i in chain(*own)], device=device),
                scale=scales[indices][..., None, None],
                rank=rank,
                row=row,
            )
            rank += len(at) * self.bank.rank
            row += len(at) * group.b[0][1]

    @torch.no_grad()
    def publish(self) -> None:
        """Recompute the factors from the bank's theta."""
        theta, rank = self.bank.theta, self.bank.rank
        for stack in self._stacks:
            for part in stack.parts:
                shape = (*part.members.shape, rank, -1)
                a = part.group.view_a(theta)[part.places].view(shape)
                b = part.group.view_b(theta)[part.places].view(*shape[:2], -1, rank)
                part.rows(stack.down, rank).copy_(a * self._factors(part))
                blocks = part.blocks(stack.up, rank, b.shape[2])
                for block, matrix in zip(blocks, b.unbind(1), strict=True):
                    block.copy_(matrix)

    def zero(self) -> None:
        """Drop the gradients: the next backward pass creates them and adds to nothing."""
        for stack in self._stacks:
            for leaf in chain(*stack.leaves):
                leaf.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Write the gradients of one backward pass to the bank's `local`."""
        for stack in self._stacks:
            to_down, to_up = (
                torch.stack([torch.zeros_like(x) if x.grad is None else x.grad for x in found])
                for found in stack.leaves
            )
            for part in stack.parts:
                self._collect(part, to_down, to_up)

    def _collect(self, part: _Part, to_down: Tensor, to_up: Tensor) -> None:
        """Write one part's gradients, of those of a stack's `down` and `up`."""
        bank, rank = self.bank, self.bank.rank
        slopes = part.rows(to_down, rank).float()
        to_a = (slopes * self._factors(part)).flatten(0, 1)
        blocks = part.blocks(to_up, rank, part.group.b[0][1])
        to_b = torch.stack(blocks, 1).float().flatten(0, 1)
        part.group.view_a(bank.local).index_copy_(0, part.places, to_a)
        part.group.view_b(bank.local).index_copy_(0, part.places, to_b)
        if bank.has_singular_values:
            a = part.group.view_a(bank.theta)[part.places].view_as(slopes)
            along = ((slopes * a).sum(-1) * part.scale[..., 0]).flatten(0, 1)
            bank.singular_values(bank.local).index_copy_(0, part.members.flatten(), along)

    def _factors(self, part: _Part) -> Tensor:
        """Return the factor of each row of A: (U, m, r, 1), or (U, m, 1, 1) without E."""
        if not self.bank.has_singular_values:
            return part.scale
        return self.bank.singular_values(self.bank.theta)[part.members][..., None] * part.scale
