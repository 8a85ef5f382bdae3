"""`AdapterBank`: all trainable parameters in one flat fp32 buffer, and views of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from bayeslora_cli.models.adapters.bank_layout import Matrix, Segment, lay_out


class Copies(Protocol):
    """Copies of the adapter parameters (scaled and cast) that the modules use in the forward pass
    instead of the parameters themselves."""

    buffers: list[Tensor]
    """All tensors that stay allocated between steps."""

    def publish(self) -> None:
        """Update the copies from theta."""

    def zero(self) -> None:
        """Zero their gradients."""

    def collect(self) -> None:
        """Write the adapters' part of `local` from the gradients of the copies."""


class AdapterBank:
    """The flat buffers of a run.

    theta (N,): what the modules see; mean (N,): the posterior's mean, the same tensor without a
    posterior; noise (N,): theta - mean, with a posterior; local (N,): gradient of one backward
    pass; grad (2, N) or (1, N): the step's average of g and of noise * g; mask (n, r): 1 for a kept
    triplet, 0 for a pruned one. parts: the slice of each role; weights: the slice of everything
    before the gates. message: the tensor that processes sum at each step: grad, losses (2,) and
    votes on the mask (n r,).
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        others: Sequence[tuple[str, str, nn.Parameter]],
        *,
        posterior: bool,
        device: torch.device | str = "cpu",
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move the parameters into flat buffers and replace them by views of the buffers.

        Args:
            matrices: adapted matrices, all of one rank, in the model's order.
            others: (name, role, parameter) of parameters outside the adapters, each listed once.
            posterior: keep noise, and a mean separate from theta.
            device: where the buffers live; the modules must be there already.
            compute_dtype: type of the views of backbone weights; those of the adapters and the
                head are fp32.
        """
        self.layout = layout = lay_out(matrices, others)
        self.matrices = tuple(matrices)
        self.rank, self.has_singular_values = layout.rank, layout.has_singular_values
        self.segments, self.groups, self.parts = layout.segments, layout.groups, layout.parts
        self.adapter_end, self.weights, self.size = layout.adapter_end, layout.weights, layout.size
        found = {name: parameter for name, _, parameter in others}
        for matrix in matrices:
            found |= matrix.parameters()
        parameters = {name: found[name] for name in layout.segments}
        assert len({id(p) for p in parameters.values()}) == len(parameters), "a parameter twice"
        end, full = layout.size, layout.parts["full"]
        low = 0 if compute_dtype == torch.float32 else full.stop - full.start
        # weights that are computed in another precision
        self._low = slice(full.start, full.start + low)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, device=device, dtype=dtype)

        self.theta = zeros(end)
        for name, parameter in parameters.items():
            self.segments[name].view(self.theta).copy_(parameter.data)
        self.mean = self.theta.clone() if posterior else self.theta
        self.noise = zeros(end if posterior else 0)
        self.local = zeros(end)
        self.mask = torch.ones(len(self.matrices), self.rank, device=device)
        sizes = [(2 if posterior else 1) * end, 2, self.mask.numel()]
        self.message = zeros(sum(sizes))
        grad, self.losses, self.votes = torch.split(self.message, sizes)
        self.grad = grad.view(2 if posterior else 1, end)
        self._low_theta = zeros(low, dtype=compute_dtype)
        self._low_local = zeros(low, dtype=compute_dtype)
        self.factors: Copies | None = None
        """The copies that modules compute with instead of the adapters' parameters, if any."""
        self._score_order = layout.order_of_scores().to(device)
        self.parameters = parameters
        for name, parameter in parameters.items():
            parameter.data = self._seen(self.segments[name], self.theta, self._low_theta)
            parameter.grad = self._seen(self.segments[name], self.local, self._low_local)
        self.publish()

    # ---- views

    def _seen(self, segment: Segment, full: Tensor, low: Tensor) -> Tensor:
        if segment.role != "full" or not len(low):
            return segment.view(full)
        return low[segment.offset - self.adapter_end :][: segment.stop - segment.offset].view(
            segment.shape
        )

    def singular_values(self, buffer: Tensor) -> Tensor:
        """View E of all matrices in a flat buffer (N,): (n, r), in the model's order."""
        return self.layout.singular_values(buffer)

    def adapters(self, buffer: Tensor) -> Tensor:
        """View the adapters' part of a flat buffer: (..., N) -> (..., adapter_end)."""
        return buffer[..., : self.adapter_end]

    def triplet_scores(self, scores: Tensor) -> Tensor:
        """Compute S = s(E) + mean_j s(A_ij) + mean_k s(B_ki): element scores (N,) -> (n, r)."""
        return self.layout.triplet_scores(scores, self._score_order)

    # ---- what happens in a step

    def publish(self) -> None:
        """Update the copies of theta that the modules compute with, if there are any."""
        self._low_theta.copy_(self.theta[self._low])
        if self.factors is not None:
            self.factors.publish()

    def perturb(self, *, masked: bool) -> None:
        """Set theta = mean + noise; `masked`: without noise on the E of pruned triplets."""
        assert self.noise.numel(), "a bank without a posterior has no noise"
        if masked and self.has_singular_values:
            self.singular_values(self.noise).mul_(self.mask)
        torch.add(self.mean, self.noise, out=self.theta)
        self.publish()

    def zero_local(self) -> None:
        """Zero the gradient that the next backward pass adds to."""
        self.local.zero_()
        self._low_local.zero_()
        if self.factors is not None:
            self.factors.zero()

    def collect(self) -> None:
        """Copy the gradients of one backward pass to `local` (fp32)."""
        if len(self._low_local):
            self.local[self._low].copy_(self._low_local)
        if self.factors is not None:
            self.factors.collect()

    def accumulate(self, weight: float, *, first: bool) -> None:
        """Add weight * [local, noise * local] to grad; `first`: overwrite grad instead."""
        if first:
            torch.mul(self.local, weight, out=self.grad[0])
        else:
            self.grad[0].add_(self.local, alpha=weight)
        if self.grad.shape[0] == 2:
            if first:
                torch.mul(self.noise, self.local, out=self.grad[1]).mul_(weight)
            else:
                self.grad[1].addcmul_(self.noise, self.local, value=weight)

    @contextmanager
    def at_mean(self) -> Iterator[None]:
        """Set theta to the mean with the current mask inside the block, as evaluation needs it."""
        kept = self.singular_values(self.mean).clone() if self.has_singular_values else None
        if self.theta is not self.mean:
            self.theta.copy_(self.mean)
        if kept is not None:
            self.singular_values(self.theta).mul_(self.mask)
        self.publish()
        try:
            yield
        finally:
            if kept is not None:
                self.singular_values(self.theta).copy_(kept)
                self.publish()

    @contextmanager
    def showing(self, theta: Tensor) -> Iterator[None]:
        """Use the given `theta` (N,) inside the block; restore the former theta afterwards."""
        before = self.theta.clone()
        self.theta.copy_(theta)
        self.publish()
        try:
            yield
        finally:
            self.theta.copy_(before)
            self.publish()

    # ---- state

    def tensors(self) -> dict[str, Tensor]:
        """Return the state tensors of a checkpoint, pruned triplets included."""
        return {"mean": self.mean, "mask": self.mask}

    def scalars(self) -> dict[str, int]:
        """Return no scalars: the buffers are all the state."""
        return {}

    def load_scalars(self, scalars: dict[str, int]) -> None:
        """Do nothing: there are no scalars."""

    def trainable(self) -> int:
        """Count the trained elements at the initial rank, without padding."""
        return sum(s.stop - s.offset for s in self.segments.values() if s.role != "fixed")

    def kept(self) -> int:
        """Count the trained elements, without those of pruned triplets."""
        sizes = torch.tensor([m.a.shape[1] + m.b.shape[0] + 1 for m in self.matrices])
        return self.trainable() - int(((1 - self.mask).sum(1).round().long().cpu() * sizes).sum())

    def check_views(self) -> None:
        """Fail if a parameter no longer lies in the buffers.

        `.to(dtype)`, `zero_grad()` and `load_state_dict(assign=True)` replace parameters silently.
        """
        for name, parameter in self.parameters.items():
            segment = self.segments[name]
            seen = self._seen(segment, self.theta, self._low_theta)
            grad = self._seen(segment, self.local, self._low_local)
            assert parameter.data_ptr() == seen.data_ptr(), f"{name} left the bank"
            assert parameter.grad is not None, f"{name} lost its gradient"
            assert parameter.grad.data_ptr() == grad.data_ptr(), f"{name}'s gradient left the bank"
