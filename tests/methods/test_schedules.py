"""Schedules against slow twins in exact fractions, at their edges, and against PEFT's allocator."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator

from bayeslora_cli.config.catalogue import LR_SCHEDULES
from bayeslora_cli.methods.schedules import DECAYS, LearningRate, RankBudget

# ---- learning rate


def slow_linear(step, lr, total, warmup):
    if step < warmup:
        return Fraction(lr) * Fraction(step, warmup)
    return Fraction(lr) * Fraction(total - step, total - warmup)


def slow_boost(step, lr, total, warmup, boost_lr, until):
    if step < warmup:
        return Fraction(boost_lr) * Fraction(step, warmup)
    if step < until:
        return Fraction(boost_lr)
    # a plateau cannot end before the warm-up that leads to it
    return Fraction(lr) * Fraction(total - step, total - max(warmup, until))


@st.composite
def learning_rates(draw):
    total = draw(st.integers(1, 200))
    return {
        "peak": draw(st.floats(1e-6, 10)),
        "total": total,
        "warmup": draw(st.sampled_from([0, total // 10, total // 2, total - 1])),
        "boost": draw(st.none() | st.floats(1e-6, 10)),
        "boost_until": draw(st.sampled_from([0, total // 10, total // 2, total - 1])),
    }


@settings(max_examples=100, deadline=None)
@given(learning_rates())
@example({"peak": 1.0, "total": 1, "warmup": 0, "boost": None, "boost_until": 0})
@example({"peak": 0.5, "total": 100, "warmup": 99, "boost": None, "boost_until": 0})
@example({"peak": 0.5, "total": 100, "warmup": 0, "boost": 2.0, "boost_until": 0})
@example({"peak": 0.5, "total": 100, "warmup": 0, "boost": 2.0, "boost_until": 99})
@example({"peak": 0.5, "total": 100, "warmup": 99, "boost": 2.0, "boost_until": 99})
@example({"peak": 0.5, "total": 100, "warmup": 50, "boost": 2.0, "boost_until": 10})
def test_learning_rate_is_the_formula(values):
    rate = LearningRate(**values)
    lr, total, warmup = values["peak"], values["total"], values["warmup"]
    boost, until = values["boost"], values["boost_until"]
    for step in range(total):
        slow = (
            slow_linear(step, lr, total, warmup)
            if boost is None
            else slow_boost(step, lr, total, warmup, boost, until)
        )
        # two roundings: a product and a quotient
        assert abs(Fraction(rate(step)) - slow) <= slow * ((1 + Fraction(1, 2**53)) ** 2 - 1)


def test_rte_as_in_the_paper():
    """Numbers that a reader can check by eye: RTE's preset."""
    rate = LearningRate(peak=0.5, total=3900, warmup=100, boost=2.0, boost_until=400)
    assert [rate(t) for t in (0, 50, 100, 399, 400, 2150, 3899)] == pytest.approx(
        [0, 1.0, 2.0, 2.0, 0.5, 0.25, 0.5 / 3500]
    )


@pytest.mark.parametrize(("decay", "theirs"), [
    ("linear", transformers.get_linear_schedule_with_warmup),
    ("cosine", transformers.get_cosine_schedule_with_warmup),
    ("constant", lambda o, w, _: transformers.get_constant_schedule_with_warmup(o, w)),
])  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 7])
def test_decays_are_those_of_transformers(decay, theirs, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, found = theirs(optimizer, warmup, 40), []
    for _ in range(40):
        found += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    rate = LearningRate(peak=0.3, total=40, warmup=warmup, decay=decay)
    assert [rate(step) for step in range(40)] == pytest.approx(found, abs=1e-12)


def test_every_schedule_has_its_decay():
    assert tuple(DECAYS) == LR_SCHEDULES


@settings(max_examples=60, deadline=None)
@given(learning_rates())
def test_learning_rate_rises_then_falls(values):
    """No jump but the one from the plateau, and never a zero once the warm-up has begun."""
    rate = LearningRate(**values)
    got = [rate(step) for step in range(values["total"])]
    warm, rest = got[: values["warmup"]], got[values["warmup"] :]
    assert warm == sorted(warm)
    if values["boost"] is None or values["boost"] > 1.001 * values["peak"]:
        assert rest == sorted(rest, reverse=True)
    assert all(r > 0 for r in got[1:])
    assert got[0] > 0 or values["warmup"] > 0


# ---- rank budget


def slow_budget(step, v):
    """The design's three cases; exact, with how far the middle one is from a whole number."""
    final = v["total"] - v["t_final"]
    if step <= v["t_init"]:
        return Fraction(v["initial"])
    if step > final:
        return Fraction(v["target"])
    remaining = 1 - Fraction(step - v["t_init"], final - v["t_init"])
    return (v["initial"] - v["target"]) * remaining**3 + v["target"]


@st.composite
def budgets(draw, *, prunes=True):
    """Valid settings, edges often; `prunes`: t_init + t_final < total."""
    total = draw(st.integers(2, 120))
    most = total - 1 if prunes else total
    t_final = draw(st.sampled_from([1, max(1, total // 3), most]) | st.integers(1, most))
    t_init = draw(st.sampled_from([0, most - t_final]) | st.integers(0, most - t_final))
    matrices = draw(st.sampled_from([1, 2, 73]))
    target = draw(st.integers(1, 8))
    initial = target + draw(st.sampled_from([0, 1, (target + 1) // 2, 20]))
    return {
        "initial": initial * matrices,
        "target": target * matrices,
        "t_init": t_init,
        "t_final": t_final,
        "delta_t": draw(st.sampled_from([1, 2, 7, 500])),
        "total": total,
    }


RTE = {"initial": 219, "target": 146, "t_init": 600, "t_final": 1800, "delta_t": 1, "total": 3900}


@settings(max_examples=150, deadline=None)
@given(budgets())
@example(RTE)
def test_budget_is_the_formula(values):
    budget = RankBudget(**values)
    for step in range(values["total"]):
        slow, got = slow_budget(step, values), budget.scheduled(step)
        assert isinstance(got, int)
        # int() of a float: where the exact value is whole, rounding may land one below, as PEFT's
        whole = slow == math.floor(slow)
        assert got == math.floor(slow) or (whole and got == slow - 1 and step < budget.final_step)


def test_budget_of_rte_by_hand():
    budget = RankBudget(**RTE)
    # halfway through the pruning an eighth of the 73 spare triplets is left: 146 + 9.125
    assert [budget(t) for t in (0, 600, 1350, 2100, 2101, 3899)] == [219, 219, 155, 146, 146, 146]


@settings(max_examples=150, deadline=None)
@given(budgets(prunes=False))
@example(RTE | {"delta_t": 100})
def test_between_allocations_the_last_ones_budget_is_in_force(values):
    """What a mask holds that is cut at the allocations alone."""
    budget, kept = RankBudget(**values), values["initial"]
    for step in range(values["total"]):
        if budget.phase(step).allocates:
            kept = budget.scheduled(step)
        assert budget(step) == kept


@settings(max_examples=100, deadline=None)
@given(budgets(prunes=False))
def test_budget_never_rises_nor_leaves_its_bounds(values):
    budget = RankBudget(**values)
    got = [budget(step) for step in range(values["total"])]
    assert got == sorted(got, reverse=True)
    # with all of the run in the final phase its first step is the last allocation's
    assert got[0] == values["initial" if budget.final_step > 0 else "target"]
    assert all(values["target"] <= b <= values["initial"] for b in got)
    if values["initial"] == values["target"]:
        assert set(got) == {values["target"]}


def slow_allocations(v):
    """Steps with an allocation: multiples of delta_t inside the phase, and T - t_final always."""
    final = v["total"] - v["t_final"]
    regular = [s for s in range(v["total"]) if v["t_init"] < s < final and s % v["delta_t"] == 0]
    return [*regular, final]


@settings(max_examples=150, deadline=None)
@given(budgets())
@example(RTE)
@example(RTE | {"delta_t": 100_000})
def test_phases(values):
    """Allocations at the listed steps, averaging strictly before the last one, then held."""
    budget, steps = RankBudget(**values), range(values["total"])
    final = values["total"] - values["t_final"]
    assert budget.final_step == final
    assert [s for s in steps if budget.phase(s).allocates] == slow_allocations(values)
    assert [s for s in steps if budget.phase(s).observes] == list(range(final))
    assert [s for s in steps if budget.phase(s).holds] == list(range(final + 1, values["total"]))


@settings(max_examples=150, deadline=None)
@given(budgets())
@example(RTE | {"delta_t": 100_000})
def test_last_allocation_reaches_the_target(values):
    """What is held to the end is the target, whatever delta_t: the user asked for that rank."""
    budget = RankBudget(**values)
    last = max(s for s in range(values["total"]) if budget.phase(s).allocates)
    assert budget(last) == values["target"]


@pytest.mark.parametrize("total", [1, 10])
def test_last_allocation_reaches_the_target_without_a_pruning_phase(total):
    """check_schedule accepts t_init + t_final = T, and a preset scaled to one step has it."""
    budget = RankBudget(
        initial=9, target=6, t_init=total - 1, t_final=1, delta_t=1, total=total
    )  # fmt: skip
    last = max(s for s in range(total) if budget.phase(s).allocates)
    assert budget(last) == 6


# ---- against PEFT


def peft_schedule(values):
    allocator = object.__new__(PeftAllocator)  # its constructor wants a model
    allocator.peft_config = SimpleNamespace(
        tinit=values["t_init"],
        tfinal=values["t_final"],
        total_step=values["total"],
        deltaT=values["delta_t"],
    )
    allocator.init_bgt, allocator.target_bgt = values["initial"], values["target"]
    return allocator.budget_schedule


@settings(max_examples=200, deadline=None)
@given(budgets())
@example(RTE)
@example(RTE | {"delta_t": 100})
def test_budget_is_pefts(values):
    """The same budget and mask at every step; ours also allocates at T - t_final, if PEFT waits.

    PEFT prunes once more at every step of the final phase; ours holds the mask there.
    """
    budget, peft = RankBudget(**values), peft_schedule(values)
    for step in range(values["total"]):
        wanted, masks = peft(step)
        assert budget.scheduled(step) == wanted
        ours = budget.phase(step).allocates or budget.phase(step).holds
        if step == budget.final_step:
            assert ours
        else:
            assert ours == masks
