"""`TrainStep`: one optimisation step, which reads no value from the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.execution.cuda_graphs import Inputs, Runner, run_eagerly
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.adalora.orthogonality import orthogonality
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.schedules import LearningRate


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMeans:
    """Means over the steps since the last reading."""

    loss: float
    """The task's loss, without the penalty."""
    penalty: float
    """The orthogonality penalty or the gates' penalty, its weight included."""


class TrainStep:
    """Samples, runs forward and backward passes, adds penalties, updates and allocates.

    Each call is one step. From a step that is not finite on, nothing changes any more: a flag on
    the device guards every write, so that the state stays as it was before that step. `bad_step`
    tells which step it was.
    """

    def __init__(
        self,
        network: Network,
        optimizer: BankOptimizer,
        allocator: Allocator | None,
        *,
        learning_rate: LearningRate,
        orth_reg: float,
        samples: int,
        runner: Runner = run_eagerly,
        processes: Processes = SINGLE,
    ) -> None:
        """Allocate the step's fixed tensors.

        Args:
            orth_reg: weight of the orthogonality penalty; 0: there is none.
            samples: number of posterior samples per micro-batch.
            runner: runs the pieces of the step, eagerly or as CUDA graphs.
            processes: the processes whose gradients are averaged.
        """
        self.network = network
        self.optimizer = optimizer
        self.allocator = allocator
        self.learning_rate = learning_rate
        self.orth_reg = orth_reg
        self.samples = samples
        self.runner = runner
        self.processes = processes
        device = network.bank.theta.device
        self.good = torch.ones((), dtype=torch.bool, device=device)
        # values that change from step to step lie in fixed tensors: a captured step reads only
        # those
        self._step = torch.zeros((), dtype=torch.float64, device=device)
        self._rate = torch.zeros((), device=device)
        self._weight = torch.zeros((), device=device)
        self._loss = network.bank.losses  # task loss and penalty of this step
        self._bad_step = torch.full((), -1.0, dtype=torch.float64, device=device)
        self._sums = torch.zeros(2, device=device)  # the same, summed over a log interval
        self._count = 0

    def __call__(self, step: int, micro_batches: Sequence[dict[str, Tensor]]) -> None:
        """Run step number `step`, counted from 0, on one batch in micro-batches.

        With several processes each gets a part of the batch, which may be empty.
        """
        self._step.fill_(step)
        self._rate.fill_(self.learning_rate(step))
        phase = None if self.allocator is None else self.allocator.announce(step)
        holds = phase is not None and phase.holds
        passes = None if phase is None else phase.passes
        if self.allocator is not None:
            self.allocator.before_passes(step, micro_batches, self.good)
        if not micro_batches:
            self.network.bank.message.zero_()
        counts = [_count(batch) for batch in micro_batches]
        total = max(1, sum(counts)) * self.samples
        first = True
        for batch, count in zip(micro_batches, counts, strict=True):
            weight: float | Tensor = count / total
            if "count" in batch:  # tensors, not constants: these weights differ from step to step
                batch = {name: value for name, value in batch.items() if name != "count"}
                weight = self._weight.fill_(weight)
            for _ in range(self.samples):
                self.runner(
                    (None if weight is self._weight else weight, first, passes),
                    partial(self._pass, weight=weight, first=first, masked=holds),
                    batch,
                )
                first = False
        self.runner(phase, partial(self._update, phase=phase), {})
        self._count += 1

    def take_part(self, batch: Inputs) -> None:
        """Run the passes of a micro-batch that count for nothing and draw nothing.

        Where frozen weights are divided, every process has to take part in all gathering.
        """
        gpus = [batch["input_ids"].device] if batch["input_ids"].is_cuda else []
        for _ in range(self.samples):
            with torch.random.fork_rng(gpus):
                self._backward({name: x for name, x in batch.items() if name != "count"})
        self.network.bank.zero_local()

    def _pass(self, batch: Inputs, *, weight: float | Tensor, first: bool, masked: bool) -> None:
        """Add the weighted gradient of one weight sample on one micro-batch to the step's."""
        self.optimizer.sample(masked=masked)
        loss = self._backward(batch)
        more = None if self.allocator is None else self.allocator.regularise()
        self._collect(loss, weight, first, more)

    def _backward(self, batch: Inputs) -> Tensor:
        """Compute gradients at theta, stored where autograd puts them; return the task's loss."""
        network = self.network
        network.bank.zero_local()
        loss = network.objective.loss(network.logits(batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def _collect(
        self, loss: Tensor, weight: float | Tensor, first: bool, more: Tensor | None = None
    ) -> None:
        """Add the gradient, the penalty's included, and the losses to the step's sums.

        Args:
            loss: the task's, of this pass.
            weight: the pass's share of the step.
            first: whether this is the step's first pass, which starts the sums.
            more: a penalty whose gradient is already in `bank.local`.
        """
        bank = self.network.bank
        bank.collect()
        penalty = orthogonality(bank, self.orth_reg) if self.orth_reg else torch.zeros_like(loss)
        penalty = penalty if more is None else penalty + more
        losses = torch.stack((loss, penalty)) * weight
        self._loss.copy_(losses if first else self._loss + losses)
        if isinstance(weight, Tensor):
            bank.local.mul_(weight)
            weight = 1.0
        bank.accumulate(weight, first=first)

    @torch.no_grad()
    def _update(self, _: Inputs, *, phase: Any) -> None:
        """Update the parameters and the allocation, unless something is not finite."""
        bank, optimizer, allocator = self.network.bank, self.optimizer, self.allocator
        good = self.processes.reduce(bank, self.good)
        # a sum is finite only if all terms are; unlike isfinite of all, it needs no second large
        # tensor
        good = good & (self._loss.sum() + bank.grad.sum()).isfinite()
        optimizer.update(self._step, self._rate, good)
        if allocator is not None:
            # sigma costs a pass over all elements: only where scores are needed
            sigma = optimizer.sigma() if phase.allocates else None
            good = allocator.after_update(phase, sigma, good)
        torch.where(self.good & ~good, self._step, self._bad_step, out=self._bad_step)
        self.good.copy_(good)
        self._sums.add_(torch.where(good, self._loss, 0))

    def compile(self) -> None:
        """Compile the parts of the step around the backbone's passes.

        With several processes the allocator's scores stay uncompiled: each process chooses the
        order of a compiled sum by timing it, and all must get the same bits.
        """
        self.optimizer.compile()
        for owner, name in ((self, "_collect"), (self.network.bank, "publish")):
            setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False))
        if self.allocator is not None and self.processes.world == 1:
            self.allocator.compile()

    def bad_step(self) -> int | None:
        """Return the first step whose loss, gradient or scores were not finite; None: no step.

        This reads from the device.
        """
        step = int(self._bad_step)
        return None if step < 0 else step

    def means(self) -> StepMeans:
        """Return the means since the last call; this reads from the device."""
        loss, penalty = self._sums.tolist()
        count = max(1, self._count)
        self._sums.zero_()
        self._count = 0
        return StepMeans(loss=loss / count, penalty=penalty / count)

    def forget(self, steps: int) -> None:
        """Leave the last `steps` steps, which changed nothing, out of the means."""
        self._count -= steps

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums over the present log interval."""
        return {"sums": self._sums}

    def scalars(self) -> dict[str, int]:
        """Return the number of steps in the sums."""
        return {"count": self._count}

    def load_scalars(self, scalars: dict[str, int]) -> None:
        """Restore what `scalars()` returned in an earlier process."""
        self._count = scalars["count"]


def _count(batch: Inputs) -> int:
    """Return a micro-batch's weight in the step's mean (`Objective.counts`); reads no device."""
    return int(batch["count"]) if "count" in batch else len(batch["labels"])
