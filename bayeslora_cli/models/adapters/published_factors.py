"""The factors that adapted layers multiply with: folded from theta and cast, once per pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

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
class _Stack:
    """Factors of U units of m matrices of one shape: layers (m = 1), or joints of m layers."""

    group: ShapeGroup
    members: Tensor
    """Indices of the bank's matrices: (U, m) int64."""
    places: Tensor
    """Their positions in the group: (U m,) int64."""
    scale: Tensor
    """Scale of each matrix's adapter: (U, m, 1, 1)."""
    down: Tensor
    """(U, padded m r, in), with an equal number of rows for each of the m matrices."""
    up: Tensor
    """(U, m out, padded m r), the matrices on the diagonal."""
    leaves: tuple[list[Tensor], list[Tensor]]
    """Views of `down` and `up`, one tensor per unit, that the layers compute with."""

    def rows(self, down: Tensor, rank: int) -> Tensor:
        """Split `down`, or its gradient, by matrix: (U, m, r, in), no copy."""
        many = self.members.shape[1]
        return down[:, : many * rank].view(len(down), many, rank, -1)

    def blocks(self, up: Tensor, rank: int) -> list[Tensor]:
        """Split `up`, or its gradient, into one block per matrix: (U, out, r) each, no copy."""
        many = self.members.shape[1]
        rows = up.chunk(many, 1)
        return [part[..., i * rank : (i + 1) * rank] for i, part in enumerate(rows)]


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
        self.bank, self.dtype = bank, dtype
        self.buffers: list[Tensor] = []
        """All tensors kept between steps; gradients live from one backward pass to the next."""
        number = {id(layer): index for index, layer in enumerate(layers)}
        joined = [[number[id(layer)] for layer in joint.layers] for joint in joints]
        single = sorted(set(number.values()).difference(*joined))
        units: list[_Unit] = [(layers[index], [index]) for index in single]
        joint_units: list[_Unit] = list(zip(joints, joined, strict=True))
        scales = torch.tensor([layer.scale for layer in layers], device=bank.theta.device)
        self._stacks = []
        for group in bank.groups:
            for kind in (units, joint_units):
                found = [(owner, ids) for owner, ids in kind if ids[0] in group.members]
                # dict.fromkeys keeps their order; a set would not
                for form in dict.fromkeys(type(owner.base_layer) for owner, _ in found):
                    alike = [unit for unit in found if type(unit[0].base_layer) is form]
                    self._stacks.append(self._stack(group, alike, scales))
        self.publish()

    def _stack(self, group: ShapeGroup, units: Sequence[_Unit], scales: Tensor) -> _Stack:
        """Build the stack of units of one form, and give each unit its factors."""
        owners, members = zip(*units, strict=True)
        device, form = self.bank.theta.device, type(owners[0].base_layer)
        rank = padded_rank(len(members[0]) * self.bank.rank, self.dtype, device)
        forms = [owner.base_layer for owner in owners]
        down, up = form.place_factors(forms, rank, self.dtype, device)
        self.buffers += [down, up]
        indices = torch.tensor(members, device=device)
        places = [group.members.index(index) for index in chain(*members)]
        stack = _Stack(
            group=group,
            members=indices,
            places=torch.tensor(places, device=device),
            scale=scales[indices][..., None, None],
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

    @torch.no_grad()
    def publish(self) -> None:
        """Recompute the factors from the bank's theta."""
        theta, rank = self.bank.theta, self.bank.rank
        for stack in self._stacks:
            shape = (*stack.members.shape, rank, -1)
            a = stack.group.view_a(theta)[stack.places].view(shape)
            b = stack.group.view_b(theta)[stack.places].view(*shape[:2], -1, rank)
            stack.rows(stack.down, rank).copy_(a * self._factors(stack))
            for block, matrix in zip(stack.blocks(stack.up, rank), b.unbind(1), strict=True):
                block.copy_(matrix)

    def zero(self) -> None:
        """Drop the gradients: the next backward pass creates them and adds to nothing."""
        for stack in self._stacks:
            for leaf in chain(*stack.leaves):
                leaf.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Write the gradients of one backward pass to the bank's `local`."""
        bank, rank = self.bank, self.bank.rank
        for stack in self._stacks:
            to_down, to_up = (
                torch.stack([torch.zeros_like(x) if x.grad is None else x.grad for x in found])
                for found in stack.leaves
            )
            slopes = stack.rows(to_down, rank).float()
            to_a = (slopes * self._factors(stack)).flatten(0, 1)
            to_b = torch.stack(stack.blocks(to_up, rank), 1).float().flatten(0, 1)
            stack.group.view_a(bank.local).index_copy_(0, stack.places, to_a)
            stack.group.view_b(bank.local).index_copy_(0, stack.places, to_b)
            if bank.has_singular_values:
                a = stack.group.view_a(bank.theta)[stack.places].view_as(slopes)
                along = ((slopes * a).sum(-1) * stack.scale[..., 0]).flatten(0, 1)
                bank.singular_values(bank.local).index_copy_(0, stack.members.flatten(), along)

    def _factors(self, stack: _Stack) -> Tensor:
        """Return the factor of each row of A: (U, m, r, 1), or (U, m, 1, 1) without E."""
        if not self.bank.has_singular_values:
            return stack.scale
        return self.bank.singular_values(self.bank.theta)[stack.members][..., None] * stack.scale
