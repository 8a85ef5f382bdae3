"""The allocator against PEFT's, and its budget under ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator
from torch import nn

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator, largest
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix

RANK = 4
SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5), (9, 6), (6, 9)]
GOOD = torch.tensor(True)


def make_bank(seed=0, posterior=False):
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape):
        return nn.Parameter(torch.empty(shape).normal_(generator=generator))

    matrices = [
        Matrix(name=f"m{i}", a=parameter(RANK, w), b=parameter(h, RANK), e=parameter(RANK, 1))
        for i, (w, h) in enumerate(SHAPES)
    ]
    return AdapterBank(matrices, [], posterior=posterior)


def make_budget(total=200, t_init=20, t_final=60, delta_t=3, target=2):
    n = len(SHAPES)
    return RankBudget(
        initial=RANK * n,
        target=target * n,
        t_init=t_init,
        t_final=t_final,
        delta_t=delta_t,
        total=total,
    )


class PeftSide(nn.Module):
    """Parameters under PEFT's names, for its allocator to walk over."""

    def __init__(self, matrices):
        super().__init__()
        self.layers = nn.ModuleDict()
        for matrix in matrices:
            layer = nn.Module()
            for part, value in (("A", matrix.a), ("B", matrix.b), ("E", matrix.e)):
                one = nn.ParameterDict({"default": nn.Parameter(value.detach().clone())})
                setattr(layer, f"lora_{part}", one)
            self.layers[matrix.name] = layer


class PeftConfig:
    beta1 = beta2 = 0.85

    def __init__(self, budget, target):
        self.target_r, self.total_step = target, budget.total
        self.tinit, self.tfinal, self.deltaT = budget.t_init, budget.t_final, budget.delta_t


@pytest.mark.parametrize("delta_t", [1, 3, 7])
def test_masks_equal_pefts_over_200_steps(delta_t):
    bank, budget = make_bank(), make_budget(delta_t=delta_t)
    peft_side = PeftSide(bank.matrices)
    theirs = PeftAllocator(peft_side, PeftConfig(budget, 2), "default")
    ours = RankAllocator(bank, load_criterion("sensitivity"), budget)
    generator = torch.Generator().manual_seed(1)
    pattern, compared = None, 0
    for step in range(budget.total):
        for layer, matrix in zip(peft_side.layers.values(), bank.matrices, strict=True):
            for part in "ABE":
                p = getattr(layer, f"lora_{part}")["default"]
                gradient = torch.empty_like(p).normal_(generator=generator)
                move = torch.empty_like(p).normal_(std=0.05, generator=generator)
                segment = bank.segments[f"{matrix.name}.lora_{part}"]
                p.grad = gradient
                p.data += move
                segment.view(bank.grad[0]).copy_(gradient)
                segment.view(bank.mean).add_(move)
        # PEFT's AdaLoraModel.update_and_allocate, which the allocator alone does not hold
        if step < budget.total - budget.t_final:
            _, found = theirs.update_and_allocate(peft_side, step)
        elif step == budget.total - budget.t_final:
            _, found = theirs.update_and_allocate(peft_side, step, force_mask=True)
        else:
            theirs.mask_using_rank_pattern(peft_side, pattern)
            found = None
        ours.after_update(ours.announce(step), None, GOOD)
        if found:
            pattern = found
            compared += 1
            for index, kept in enumerate(found.values()):
                assert bank.mask[index].bool().tolist() == kept, (step, index)
        for layer, matrix in zip(peft_side.layers.values(), bank.matrices, strict=True):
            expected = layer.lora_E["default"]
            segment = bank.segments[f"{matrix.name}.lora_E"]
            assert torch.equal(segment.view(bank.mean), expected), step
    assert compared == len([s for s in range(21, 140) if s % delta_t == 0]) + 1
    assert bank.mask.sum() == budget.target


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_budget_is_exact_under_ties(data):
    n, r = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    values = st.sampled_from([0.0, 0.0, 1.0, 2.0, 1e-30])
    scores = torch.tensor(data.draw(st.lists(values, min_size=n * r, max_size=n * r))).view(n, r)
    budget = data.draw(st.integers(0, n * r))
    mask = largest(scores, budget)
    assert mask.sum() == budget
    kept, dropped = scores[mask == 1], scores[mask == 0]
    if len(kept) and len(dropped):
        assert kept.min() >= dropped.max()
    # ties go to the earlier position
    ranked = sorted(range(n * r), key=lambda i: (-scores.flatten()[i].item(), i))
    assert set(mask.flatten().nonzero().flatten().tolist()) == set(ranked[:budget])
    assert torch.equal(mask, largest(scores, torch.tensor(budget)))


def test_pefts_own_rule_misses_the_budget_under_ties():
    """Why ours sorts: `score <= kthvalue` drops every triplet of the threshold's score."""
    bank, budget = make_bank(), make_budget(t_init=0)
    ours = RankAllocator(bank, load_criterion("sensitivity"), budget)
    assert ours.scores(None).unique().numel() == 1  # nothing observed yet: all zero
    for step in (3, 6, 30):
        ours.after_update(ours.announce(step), None, GOOD)
        assert bank.mask.sum() == budget(step)


@pytest.mark.parametrize("name", ["snr", "snr-abs", "magnitude", "precision"])
def test_scores_are_a_slow_sum_over_triplets(name):
    bank = make_bank(posterior=True)
    sigma = torch.empty(bank.size).uniform_(0.1, 2.0, generator=torch.Generator().manual_seed(3))
    criterion = load_criterion(name)
    scores = RankAllocator(bank, criterion, make_budget()).scores(sigma)
    for index, matrix in enumerate(bank.matrices):
        parts = {p: bank.segments[f"{matrix.name}.lora_{p}"] for p in "ABE"}

        def element(part, i, j, parts=parts):
            from bayeslora_cli.bayes.criteria import ElementStatistics

            segment = parts[part]
            mean = segment.view(bank.mean)[i, j].double()
            return criterion.score(
                ElementStatistics(mean=mean, sigma=segment.view(sigma)[i, j].double())
            ).item()

        width, height = matrix.a.shape[1], matrix.b.shape[0]
        for i in range(RANK):
            expected = element("E", i, 0)
            expected += sum(element("A", i, j) for j in range(width)) / width
            expected += sum(element("B", k, i) for k in range(height)) / height
            assert scores[index, i].item() == pytest.approx(expected, rel=2e-5)


def test_dropped_triplets_may_grow_back_until_the_final_phase():
    bank, budget = make_bank(), make_budget(delta_t=5)
    ours = RankAllocator(bank, load_criterion("magnitude"), budget)
    ours.after_update(ours.announce(100), None, GOOD)
    dropped = bank.mask == 0
    assert bool(dropped.any())
    bank.singular_values(bank.mean)[dropped] = 50.0
    ours.after_update(ours.announce(101), None, GOOD)  # no allocation: left alone
    assert bool((bank.singular_values(bank.mean)[dropped] == 50.0).all())
    ours.after_update(ours.announce(105), None, GOOD)
    assert bool((bank.mask[dropped] == 1).any())
    ours.after_update(ours.announce(budget.final_step), None, GOOD)
    final = bank.mask.clone()
    bank.singular_values(bank.mean).fill_(99.0)
    ours.after_update(ours.announce(budget.final_step + 1), None, GOOD)
    assert torch.equal(bank.mask, final)
    assert torch.equal(bank.singular_values(bank.mean), final * 99.0)


def test_a_score_that_is_not_finite_is_an_error_not_zero():
    bank, budget = make_bank(), make_budget()
    ours = RankAllocator(bank, load_criterion("magnitude"), budget)
    bank.segments["m2.lora_A"].view(bank.mean)[1, 1] = float("inf")
    before = bank.mask.clone()
    assert not ours.after_update(ours.announce(budget.final_step), None, GOOD)
    assert torch.equal(bank.mask, before)


def test_nothing_happens_after_a_bad_step():
    bank, budget = make_bank(), make_budget()
    ours = RankAllocator(bank, load_criterion("sensitivity"), budget)
    bank.grad.fill_(float("nan"))
    values = bank.singular_values(bank.mean).clone()
    assert not ours.after_update(ours.announce(budget.final_step - 1), None, torch.tensor(False))
    assert not ours.after_update(ours.announce(budget.final_step), None, torch.tensor(False))
    assert torch.equal(bank.singular_values(bank.mean), values)
    assert bool((ours.sensitivity == 0).all())
    assert bool((bank.mask == 1).all())


def test_history_is_what_happened():
    bank, budget = make_bank(), make_budget(delta_t=10)
    ours = RankAllocator(bank, load_criterion("magnitude"), budget)
    for step in range(budget.total):
        ours.after_update(ours.announce(step), None, GOOD)
    history = ours.fetch_history()
    assert [a.step for a in history] == [*range(30, 140, 10), 140]
    assert all(sum(a.ranks) == a.budget == budget(a.step) for a in history)
    assert ours.fetch_history() == []
