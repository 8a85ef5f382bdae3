"""B-LoRA's three phases over the steps of a run, and warnings about phases that cannot work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.values import parse_ladder
from bayeslora_cli.methods.blora.gates import SHIFT, START, THRESHOLD

LINES = 200  # at most this many lines in ranks.jsonl from the learning phase
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch's AdamW


@dataclass(frozen=True, kw_only=True, slots=True)
class GatePhase:
    """How a step treats the gates."""

    mode: str
    """One of float, learning, fixed; see `operands`."""
    records: bool
    """Whether ranks and widths are recorded in the history."""
    allocates: bool = False
    """Always False: scores and sigma are not needed."""

    @property
    def holds(self) -> bool:
        """Whether ranks and widths are fixed."""
        return self.mode == "fixed"

    @property
    def passes(self) -> str:
        """The part of the phase that a forward pass depends on."""
        return self.mode


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSchedule:
    """Phases of a run: float for t_init steps, fixed for the last t_final, learning between."""

    t_init: int
    t_final: int
    total: int

    @property
    def first_fixed(self) -> int:
        """First step with the gates at their thresholds."""
        return max(self.t_init, self.total - self.t_final)

    @property
    def final_step(self) -> int:
        """Step of the last change of the gates; afterwards they are fixed."""
        return self.first_fixed - 1

    @property
    def learning(self) -> int:
        """Number of steps in which gates are learned."""
        return self.first_fixed - self.t_init

    @property
    def phases(self) -> list[tuple[str, int, int]]:
        """Return mode, first step and the step after the last, of each phase that has steps."""
        ends = (0, self.t_init, self.first_fixed, self.total)
        found = zip(("float", "learning", "fixed"), ends[:-1], ends[1:], strict=True)
        return [(mode, first, stop) for mode, first, stop in found if first < stop]

    def phase(self, step: int) -> GatePhase:
        """Return the phase of `step`."""
        if step < self.t_init:
            return GatePhase(mode="float", records=False)
        if step >= self.first_fixed:
            return GatePhase(mode="fixed", records=step == self.first_fixed)
        every = max(1, self.learning // LINES)
        last = step == self.final_step
        return GatePhase(mode="learning", records=(step - self.t_init) % every == every - 1 or last)


def steps_to_close(rate: float, at_most: int, weight: float = 1.0) -> int | None:
    """Simulate how many steps the penalty needs to close a new gate; None: more than `at_most`.

    AdamW moves phi at the learning rate `rate`, on the gradient of q = sigmoid(phi + 1.5986). The
    gradient grows as the gate closes, so that the gate moves more than `rate` per step. Its scale
    does not matter, unless it is near AdamW's epsilon: a new gate's gradient is 0.0005 times the
    penalty's `weight`.
    """
    phi, average, square = START, 0.0, 0.0
    for step in range(1, at_most + 1):
        q = 1 / (1 + math.exp(-phi - SHIFT))
        gradient = weight * q * (1 - q)
        average = BETA1 * average + (1 - BETA1) * gradient
        square = BETA2 * square + (1 - BETA2) * gradient**2
        corrected = average / (1 - BETA1**step)
        phi -= rate * corrected / (math.sqrt(square / (1 - BETA2**step)) + EPSILON)
        if phi <= THRESHOLD:
            return step
    return None


def schedule_of(config: RunConfig) -> GateSchedule:
    """Return the phases of a run; `config` has its final schedule."""
    return GateSchedule(t_init=config.t_init, t_final=config.t_final, total=config.total_steps)


def too_short(config: RunConfig) -> str | None:
    """Return a warning if there are no gates, or the learning phase is too short to close one."""
    if config.blora_mode == "rank" and config.init_rank == 1:
        return (
            "--blora-mode rank --init-rank 1: there is no gate, as the first rank of a matrix is "
            "kept. Raise --init-rank"
        )
    weights = {}
    ladder = parse_ladder(config.bit_ladder)
    if config.blora_mode != "rank" and len(ladder) > 1 and config.lambda_quant:
        # the first gate of a quantizer occurs in all of its terms
        most = sum(ladder[1:]) if config.reg == "bop" else len(ladder) - 1
        weights["--lambda-quant"] = config.lambda_quant * most
    if config.blora_mode != "quant" and config.init_rank > 1 and config.lambda_rank:
        weights["--lambda-rank"] = config.lambda_rank
    if not weights:
        return None  # there are no gates, or no penalty on them
    steps = schedule_of(config).learning
    if steps == 0:
        return (
            f"--t-init {config.t_init} --t-final {config.t_final}: of {config.schedule_steps} "
            "steps none is left for gates and ranges to be learned in. Lower them"
        )
    if steps_to_close(config.gate_lr, steps) is not None:
        values = {"--lambda-quant": config.lambda_quant, "--lambda-rank": config.lambda_rank}
        given = " ".join(
            f"{name} {values[name]}"
            for name, weight in weights.items()
            if steps_to_close(config.gate_lr, steps, weight) is None
        )
        if not given:
            return None
        return (
            f"{given}: too small for AdamW to close a gate in the learning phase's {steps} steps "
            "by the penalty; ranks or widths may stay what they are at the start. Raise the "
            "penalty"
        )
    return (
        f"--gate-lr {config.gate_lr}: the learning phase has {steps} steps, too few for the "
        "penalty to close a gate; ranks and widths may stay what they are at the start. Train "
        "longer, or raise --gate-lr"
    )
