"""What the adapted layers multiply with: theta's factors, folded and cast once a pass for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from bayeslora_cli.adapters import LowRankLinear
from bayeslora_cli.bank import AdapterBank

# a GPU's matrix products want rows of 16 bytes: with a rank of 3 they take three times as long
ROW_BYTES = 16


def padded_rank(rank: int, dtype: torch.dtype, device: torch.device) -> int:
    """The rank that is computed with."""
    unit = ROW_BYTES // dtype.itemsize if device.type == "cuda" else 1
    return -(-rank // unit) * unit


class Factors:
    """down = scale diag(E) A, (r, in), and up = B, (out, r), of every matrix, a stack a shape.

    On a GPU the rank is filled up with zeros to whole rows of `ROW_BYTES`, which changes no result.
    The layers' gradients come back the same way: dA = scale E d(down), dE = scale (d(down) . A) a
    row, dB = d(up).
    """

    def __init__(
        self, bank: AdapterBank, layers: Sequence[LowRankLinear], dtype: torch.dtype
    ) -> None:
        """`layers`: those of the bank's matrices, in its order; they get their factors here."""
        self.bank = bank
        device = bank.theta.device
        rank = padded_rank(bank.rank, dtype, device)
        scales = torch.tensor([layer.scale for layer in layers], device=device)
        self.buffers: list[Tensor] = []
        """All that is kept; gradients live from a backward pass to the next."""
        self._groups = []
        for group in bank.groups:
            (count, _, width), (_, height, _) = group.a[0], group.b[0]
            down = torch.zeros(count, rank, width, device=device, dtype=dtype)
            # rows of up' are what products walk along
            up = torch.zeros(count, rank, height, device=device, dtype=dtype).mT
            members = torch.tensor(group.members, device=device)
            leaves = [[x.detach().requires_grad_() for x in tensor] for tensor in (down, up)]
            self.buffers += [down, up]
            self._groups.append((group, members, scales[members][:, None], down, up, leaves))
            for index, one, other in zip(group.members, *leaves, strict=True):
                layers[index].down, layers[index].up = one, other
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Make the layers see the bank's theta."""
        rank = self.bank.rank
        for group, members, scale, down, up, _ in self._groups:
            down[:, :rank].copy_(group.view_a(self.bank.theta) * self._rows(members, scale))
            up[..., :rank].copy_(group.view_b(self.bank.theta))

    def zero(self) -> None:
        """Forget the gradients: the next backward pass makes them, and adds to nothing."""
        for *_, leaves in self._groups:
            for leaf in chain(*leaves):
                leaf.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Bring the gradients of one backward pass into the bank's `local`."""
        bank, rank = self.bank, self.bank.rank
        for group, members, scale, _, _, leaves in self._groups:
            grad_down, grad_up = (
                torch.stack([torch.zeros_like(x) if x.grad is None else x.grad for x in found])
                for found in leaves
            )
            slopes = grad_down[:, :rank].float()
            rows = self._rows(members, scale)
            group.view_a(bank.local).copy_(slopes * rows)
            group.view_b(bank.local).copy_(grad_up[..., :rank])
            if bank.adaptive:
                along = (slopes * group.view_a(bank.theta)).sum(-1) * scale
                bank.singular_values(bank.local).index_copy_(0, members, along)

    def _rows(self, members: Tensor, scale: Tensor) -> Tensor:
        """The factor of each row of A: (G, r, 1), or (G, 1, 1) without E."""
        if not self.bank.adaptive:
            return scale[..., None]
        return (self.bank.singular_values(self.bank.theta)[members] * scale)[..., None]
