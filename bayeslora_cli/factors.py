"""What the adapted layers multiply with: theta's factors, folded and cast once a pass for all."""

from __future__ import annotations

from collections.abc import Sequence

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
        """All that is kept: factors and their gradients."""
        self._groups = []
        for group in bank.groups:
            (count, _, width), (_, height, _) = group.a[0], group.b[0]
            down = torch.zeros(count, rank, width, device=device, dtype=dtype)
            up = torch.zeros(count, height, rank, device=device, dtype=dtype)
            gradients = torch.zeros_like(down), torch.zeros_like(up)
            members = torch.tensor(group.members, device=device)
            self.buffers += [down, up, *gradients]
            self._groups.append((group, members, scales[members][:, None], down, up, gradients))
            for place, index in enumerate(group.members):
                leaves = []
                for tensor, gradient in zip((down, up), gradients, strict=True):
                    leaf = tensor[place].detach().requires_grad_()
                    leaf.grad = gradient[place]
                    leaves.append(leaf)
                layers[index].down, layers[index].up = leaves
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Make the layers see the bank's theta."""
        rank = self.bank.rank
        for group, members, scale, down, up, _ in self._groups:
            down[:, :rank].copy_(group.view_a(self.bank.theta) * self._rows(members, scale))
            up[..., :rank].copy_(group.view_b(self.bank.theta))

    def zero(self) -> None:
        """Zero what the next backward pass adds to."""
        for *_, gradients in self._groups:
            for gradient in gradients:
                gradient.zero_()

    @torch.no_grad()
    def collect(self) -> None:
        """Bring the gradients of one backward pass into the bank's `local`."""
        bank, rank = self.bank, self.bank.rank
        for group, members, scale, _, _, (grad_down, grad_up) in self._groups:
            slopes = grad_down[:, :rank].float()
            rows = self._rows(members, scale)
            torch.mul(slopes, rows, out=group.view_a(bank.local))
            group.view_b(bank.local).copy_(grad_up[..., :rank])
            if bank.adaptive:
                along = (slopes * group.view_a(bank.theta)).sum(-1) * scale
                bank.singular_values(bank.local).index_copy_(0, members, along)

    def _rows(self, members: Tensor, scale: Tensor) -> Tensor:
        """The factor of each row of A: (G, r, 1), or (G, 1, 1) without E."""
        if not self.bank.adaptive:
            return scale[..., None]
        return (self.bank.singular_values(self.bank.theta)[members] * scale)[..., None]
