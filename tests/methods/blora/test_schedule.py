"""Phases of B-LoRA, and warnings of schedules in which gates cannot close."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.run_config import RunConfig, flag
from bayeslora_cli.methods.blora.gates import SHIFT, START, THRESHOLD
from bayeslora_cli.methods.blora.schedule import GateSchedule, steps_to_close, too_short
from tests.methods.blora.test_trainer import BLORA


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 900))
def test_three_phases_in_their_order(t_init, t_final, between):
    total = t_init + between + t_final
    schedule = GateSchedule(t_init=t_init, t_final=t_final, total=total)
    phases = [schedule.phase(t) for t in range(total)]
    modes = [p.mode for p in phases]
    assert modes == ["float"] * t_init + ["learning"] * between + ["fixed"] * t_final
    recorded = [t for t, p in enumerate(phases) if p.records]
    assert len(recorded) <= 402
    assert recorded[-1] == schedule.first_fixed
    assert schedule.learning == between


@pytest.mark.parametrize(("rate", "about"), [(1e-2, 350), (1e-3, 4000)])
def test_steps_that_a_gate_needs_to_close(rate, about):
    """By torch's own AdamW on q alone; the specification's numbers within a fifth."""
    found = steps_to_close(rate, 10_000)
    assert found == pytest.approx(about, rel=0.2)
    phi = torch.tensor(START, requires_grad=True)
    adamw = torch.optim.AdamW([phi], lr=rate, weight_decay=0.0)
    for _ in range(found):
        assert phi > THRESHOLD
        adamw.zero_grad()
        (phi + SHIFT).sigmoid().backward()
        adamw.step()
    assert phi <= THRESHOLD + 1e-3
    assert steps_to_close(rate, found - 1) is None


@pytest.mark.parametrize("weight", [1e-3, 1e-5, 1e-6])
def test_a_weak_penalty_is_near_adamws_epsilon(weight):
    """By torch's own AdamW; the warning names what is too small."""
    found = steps_to_close(1e-2, 20_000, weight)
    phi = torch.tensor(START, requires_grad=True)
    adamw = torch.optim.AdamW([phi], lr=1e-2, weight_decay=0.0)
    for _ in range(found):
        assert phi > THRESHOLD
        adamw.zero_grad()
        (weight * (phi + SHIFT).sigmoid()).backward()
        adamw.step()
    assert phi <= THRESHOLD + 1e-2
    assert (found > 1.3 * steps_to_close(1e-2, 10_000)) == (weight < 1e-3)
    changes = {"lambda_quant": weight / 3, "lambda_rank": 0.0}
    config = RunConfig(**{**BLORA, "target_rank": 3, "schedule_steps": found, **changes})
    said = too_short(config)  # a step fewer than it takes
    if weight < 1e-3:
        assert f"--lambda-quant {weight / 3}: too small" in said
        assert "--lambda-rank" not in said
    assert too_short(replace(config, schedule_steps=2 * found + 2)) is None


@pytest.mark.parametrize("name", ["lambda_quant", "lambda_rank"])
def test_each_penalty_that_is_too_small_is_named(name):
    plain = RunConfig(**{**BLORA, "target_rank": 3, "schedule_steps": 2000})
    assert too_short(plain) is None
    said = too_short(replace(plain, **{name: 1e-12}))
    assert said.startswith(f"{flag(name)} 1e-12: too small")


@pytest.mark.parametrize(
    "changes",
    [
        {"blora_mode": "quant", "bit_ladder": "8"},
        {"lambda_quant": 0.0, "lambda_rank": 0.0},
        {"init_rank": 1, "target_rank": 1, "lambda_quant": 0.0},
    ],
)
def test_no_warning_where_nothing_is_to_close(changes):
    config = RunConfig(**{**BLORA, "target_rank": 3, "schedule_steps": 10, **changes})
    assert too_short(config) is None
    assert too_short(replace(config, schedule_steps=10_000)) is None


def test_a_warning_where_ranks_alone_are_learned_and_there_is_one():
    config = RunConfig(**{**BLORA, "blora_mode": "rank", "init_rank": 1, "target_rank": 1})
    assert "there is no gate" in too_short(config)
    assert too_short(replace(config, blora_mode="both", schedule_steps=10_000)) is None


def test_no_step_is_left_to_learn_gates_in():
    config = RunConfig(**{**BLORA, "target_rank": 3, "schedule_steps": 20, "t_init": 16})
    said = too_short(replace(config, t_final=4))
    assert said.startswith("--t-init 16 --t-final 4: of 20 steps none is left")
