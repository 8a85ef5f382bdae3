"""`GateTrainer`: trains B-LoRA's gates and ranges, next to the optimizer of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.adamw import BankAdamW
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.allocation import HISTORY, Allocation, Allocator
from bayeslora_cli.methods.blora.gates import nested, probability
from bayeslora_cli.methods.blora.operands import FIXED, FLOAT, LEARNING, publisher_of
from bayeslora_cli.methods.blora.range_calibration import calibrate, measure
from bayeslora_cli.methods.blora.report import gate_facts, gate_result
from bayeslora_cli.methods.blora.schedule import GatePhase, GateSchedule
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.bank import AdapterBank

logger = logging.getLogger("bayeslora")
UPDATED = {FLOAT: (), LEARNING: ("gate", "range"), FIXED: ("range",)}
"""Roles that AdamW updates in each mode, besides the weights."""


class GateTrainer(Allocator):
    """Learns gates and ranges by AdamW, with constant learning rates and no weight decay."""

    def __init__(
        self,
        network: Network,
        schedule: GateSchedule,
        *,
        width_weights: Tensor,
        rank_weight: float,
        gate_lr: float,
        range_lr: float,
        generator: torch.Generator,
        processes: Processes = SINGLE,
    ) -> None:
        """Start in the first phase that has steps.

        Args:
            width_weights: the penalty's weight of each gate over a width: (n, q, L - 1).
            rank_weight: the penalty's weight of each matrix's ranks.
            generator: draws the gates.
            processes: the initial ranges are measured on the batches of all of them.
        """
        self.network, self.schedule = network, schedule
        self.operands = publisher_of(network)
        self.gates = self.operands.parameters
        self.processes = processes
        self.final_step = schedule.final_step
        bank = self.bank = network.bank
        device = bank.theta.device
        self.operands.generator = generator
        self._rates = {"gate": gate_lr, "range": range_lr}
        self._adamw = gate_optimizers(bank)
        self.width_weights, self.rank_weight = width_weights.to(device), rank_weight
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        # of each matrix at the recorded steps: its rank, and the indices of its widths in the
        # ladder
        columns = 1 + len(self.gates.plan.operands)
        self._recorded = torch.zeros(HISTORY, len(bank.matrices), columns, device=device)
        self._history: list[int] = []
        self._fetched: list[Allocation] = []
        self.operands.mode = schedule.phase(0).mode

    # ---- called by the training step

    def announce(self, step: int) -> GatePhase:
        phase = self.schedule.phase(step)
        self.operands.mode = phase.mode
        if phase.records:
            if len(self._history) == HISTORY:
                self._fetched = self.fetch_history()
            self._row.fill_(len(self._history))
            self._history.append(step)
        return phase

    def before_passes(
        self, step: int, batches: Sequence[Mapping[str, Tensor]], good: Tensor
    ) -> None:
        """Measure the initial ranges once, at the end of the float phase."""
        if step == self.schedule.t_init and self.gates.plan.operands:
            extremes = self.processes.min_max(measure(self.network, batches))
            calibrate(self.operands, self.bank.mean, extremes, good)

    def regularise(self) -> Tensor:
        """Add the penalty's gradient at theta to `bank.local`; return its value.

        lambda_q sum over quantizers of w_4 q_4 + w_8 q_4 q_8 + w_16 q_4 q_8 q_16
        + lambda_r sum over matrices of the mean over i of q_1 … q_i.
        """
        total = torch.zeros((), device=self.bank.theta.device)
        if self.operands.mode != LEARNING:
            return total
        with torch.enable_grad():
            if self.operands.bits is not None:
                total = total + (self.width_weights * nested(probability(self.operands.bits))).sum()
            if self.operands.ranks is not None:
                kept = nested(probability(self.operands.ranks)).mean(-1).sum()
                total = total + self.rank_weight * kept
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    def after_update(self, phase: GatePhase, sigma: Tensor | None, good: Tensor) -> Tensor:
        for role in UPDATED[phase.mode]:
            if role in self._adamw:
                self._adamw[role].update(0, self._rates[role], good)
        self._settle(phase, good)
        return good

    def compile(self) -> None:  # torch's fused AdamW is one kernel already, and cannot be compiled
        self._settle = torch.compile(self._settle, dynamic=False)  # type: ignore[method-assign]

    def _settle(self, phase: GatePhase, good: Tensor) -> None:
        """Apply the gates of the ranks to the bank's mask, and record ranks and widths."""
        if phase.mode == LEARNING:
            kept = self.gates.mask(self.bank.mean)
            torch.where(good, kept, self.bank.mask, out=self.bank.mask)
        if phase.records:
            levels = self.gates.levels(self.bank.mean).to(self._recorded.dtype)
            found = torch.cat((self.bank.mask.sum(1, keepdim=True), levels), 1)
            self._recorded.index_copy_(0, self._row, found[None])

    # ---- called by the training loop

    def scores(self, sigma: Tensor | None) -> Tensor:
        """Return the probability that each rank is kept: (n, r)."""
        return self.gates.expected_ranks(self.bank.mean)

    def facts(self, step: int) -> dict[str, Any]:
        mode = self.schedule.phase(step).mode
        at = gate_facts(self.network, self.bank.mean, self.bank.mask, quantized=mode != FLOAT)
        return {"phase": mode, **at, **self._penalties()}

    @torch.no_grad()
    def _penalties(self) -> dict[str, float]:
        """Return both parts of the penalty at the mean, weights included."""
        found = {}
        reach = self.gates.expected_reach(self.bank.mean)
        if reach is not None:
            found["penalty_quant"] = float((self.width_weights * reach).sum())
        if self.gates.over_ranks:
            kept = self.gates.expected_ranks(self.bank.mean)[:, 1:]
            found["penalty_rank"] = float(self.rank_weight * kept.mean(-1).sum())
        return found

    def result(self, mean: Tensor, mask: Tensor) -> dict[str, Any]:
        found = gate_result(self.network, mean, mask)
        if found["gates_note"] is not None:
            logger.warning("%s", found["gates_note"])
        return found

    def fetch_history(self) -> list[Allocation]:
        found = self._recorded[: len(self._history)].round().long().tolist()
        fetched = [
            Allocation(
                step=step,
                budget=sum(row[0] for row in rows),
                ranks=[row[0] for row in rows],
                bits=[self._widths(row[1:]) for row in rows] if self.gates.plan.bits else None,
            )
            for step, rows in zip(self._history, found, strict=True)
        ]
        fetched, self._fetched = self._fetched + fetched, []
        self._history.clear()
        return fetched

    def _widths(self, levels: list[int]) -> dict[str, int]:
        plan = self.gates.plan
        return dict(zip(plan.operands, (plan.ladder[level] for level in levels), strict=True))

    # ---- state

    def tensors(self) -> dict[str, Tensor]:
        """Return AdamW's moments; the bank saves gates and ranges."""
        return {
            f"{role}/{name}": value
            for role, adamw in self._adamw.items()
            for name, value in adamw.tensors().items()
        }

    def scalars(self) -> dict[str, Any]:
        """Return the mode, which an evaluation before the next step needs.

        The caller must fetch the history first.
        """
        assert not self._history + self._fetched, (
            "a checkpoint would lose allocations that were not fetched"
        )
        return {"mode": self.operands.mode}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore what `scalars()` returned in an earlier process."""
        self.operands.mode = scalars["mode"]


def gate_optimizers(bank: AdapterBank) -> dict[str, BankAdamW]:
    """Build AdamW for gates and for ranges, as far as the bank has any, by role."""
    parts = {role: bank.parts[role] for role in ("gate", "range")}
    return {
        role: BankAdamW(bank, weight_decay=0.0, part=part)
        for role, part in parts.items()
        if part.start < part.stop
    }
