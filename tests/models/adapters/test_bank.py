"""The flat buffers and their views."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import ALIGNMENT, Matrix


def build(shapes, rank, head=(), *, posterior=False, dtype=torch.float32, lora=False, full=()):
    def parameter(*shape):
        return nn.Parameter(torch.randn(shape).to(dtype))

    matrices = [
        Matrix(
            name=f"layer.{i}.dense",
            a=parameter(rank, w),
            b=parameter(h, rank),
            e=None if lora else parameter(rank, 1),
        )
        for i, (w, h) in enumerate(shapes)
    ]
    heads = [(f"head.{i}", "head", nn.Parameter(torch.randn(s))) for i, s in enumerate(head)]
    fulls = [(f"full.{i}", "full", parameter(*s)) for i, s in enumerate(full)]
    start = [p.detach().clone() for m in matrices for p in (m.a, m.b, m.e) if p is not None]
    bank = AdapterBank(matrices, fulls + heads, posterior=posterior, compute_dtype=dtype)
    return bank, matrices, start


SHAPE = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(SHAPE, min_size=1, max_size=8), st.integers(1, 5), st.booleans(), st.booleans())
def test_parameters_are_views_and_keep_their_values(shapes, rank, posterior, lora):
    bank, matrices, start = build(shapes, rank, head=[(3, 5), (3,)], posterior=posterior, lora=lora)
    now = [p for m in matrices for p in (m.a, m.b, m.e) if p is not None]
    for before, parameter in zip(start, now, strict=True):
        assert torch.equal(before, parameter)
    bank.check_views()
    # one write to the flat buffer is seen by every module, one backward pass lands in one buffer
    bank.theta.fill_(2.0)
    assert all(bool((p == 2).all()) for p in now)
    bank.zero_local()
    sum((p * 3).sum() for p in now).backward()
    used = sum(p.numel() for p in now)
    assert bank.local.sum().item() == 3 * used
    assert bank.trainable() == used + 18


@settings(max_examples=60, deadline=None)
@given(st.lists(SHAPE, min_size=1, max_size=8), st.integers(1, 5))
def test_segments_are_aligned_and_apart(shapes, rank):
    bank, _, _ = build(shapes, rank, head=[(3,)])
    seen = torch.zeros(bank.size)
    for segment in bank.segments.values():
        segment.view(seen).add_(1)
        if not segment.name.endswith("lora_E"):
            assert segment.offset % ALIGNMENT == 0
    assert seen.max() == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(SHAPE, min_size=1, max_size=8), st.integers(1, 5))
def test_group_views_stack_the_matrices(shapes, rank):
    bank, matrices, _ = build(shapes, rank)
    seen = []
    for group in bank.groups:
        a, b = group.view_a(bank.theta), group.view_b(bank.theta)
        assert a.data_ptr() - bank.theta.data_ptr() == 4 * group.a[2]
        for row, index in enumerate(group.members):
            assert torch.equal(a[row], matrices[index].a)
            assert torch.equal(b[row], matrices[index].b)
            seen.append(index)
    assert sorted(seen) == list(range(len(shapes)))
    values = bank.singular_values(bank.theta)
    for index, matrix in enumerate(matrices):
        assert torch.equal(values[index], matrix.e[:, 0])


@settings(max_examples=40, deadline=None)
@given(st.lists(SHAPE, min_size=1, max_size=6), st.integers(1, 4))
def test_triplet_scores(shapes, rank):
    bank, matrices, _ = build(shapes, rank)
    scores = bank.triplet_scores(bank.theta)
    for index, m in enumerate(matrices):
        expected = m.e[:, 0] + m.a.mean(1) + m.b.mean(0)
        torch.testing.assert_close(scores[index], expected.data)


def test_layers_of_one_block_are_neighbours():
    """Query, key and value of a layer lie side by side: one product can serve all three."""
    bank, _, _ = build([(8, 8), (8, 8), (8, 8), (8, 24), (24, 8)], 8)
    offsets = [bank.segments[f"layer.{i}.dense.lora_A"].offset for i in range(3)]
    assert offsets == [offsets[0], offsets[0] + 64, offsets[0] + 128]


@pytest.mark.parametrize("posterior", [False, True])
def test_evaluation_sees_the_mean_with_the_mask_and_leaves_no_trace(posterior):
    bank, matrices, _ = build([(5, 4), (4, 5)], 3, posterior=posterior)
    if posterior:
        bank.noise.fill_(1)
        bank.perturb(masked=False)
    bank.mask[0, 1] = 0
    mean = bank.mean.clone()
    with bank.at_mean():
        assert matrices[0].e[1, 0] == 0
        assert torch.equal(matrices[1].e[:, 0], bank.singular_values(mean)[1])
        assert torch.equal(matrices[0].a, bank.segments["layer.0.dense.lora_A"].view(mean))
    assert torch.equal(bank.mean, mean), "a grown-back triplet must survive an evaluation"
    with pytest.raises(RuntimeError), bank.at_mean():
        raise RuntimeError
    assert torch.equal(bank.mean, mean)


def test_bf16_computes_on_copies_and_keeps_the_master_in_fp32():
    bank, matrices, _ = build(
        [(5, 4)], 2, head=[(3,)], posterior=True, dtype=torch.bfloat16, full=[(7,)]
    )
    assert bank.theta.dtype == bank.mean.dtype == torch.float32
    assert matrices[0].a.dtype == torch.float32, "the factors made of it are in bf16"
    full = bank.parameters["full.0"]
    assert full.dtype == torch.bfloat16
    head = bank.parameters["head.0"]
    assert head.dtype == torch.float32
    bank.mean.fill_(1 + 2**-12)  # bf16 has 8 bits
    bank.perturb(masked=False)
    assert bool((full == 1).all())
    assert bool((head == 1 + 2**-12).all())
    bank.zero_local()
    (
        (matrices[0].a * 3).sum() + (head * 5).sum() + (bank.parameters["full.0"] * 7).sum()
    ).backward()
    bank.collect()
    assert bool((bank.segments["layer.0.dense.lora_A"].view(bank.local) == 3).all())
    assert bool((bank.segments["full.0"].view(bank.local) == 7).all())
    assert bool((bank.segments["head.0"].view(bank.local) == 5).all())
    bank.check_views()


@pytest.mark.parametrize("harm", ["to", "zero_grad"])
def test_check_views_notices_what_breaks_them(harm):
    bank, matrices, _ = build([(5, 4)], 2)
    if harm == "to":
        matrices[0].a.data = matrices[0].a.data.clone()
    else:
        matrices[0].b.grad = None
    with pytest.raises(AssertionError):
        bank.check_views()


def test_accumulation_averages_gradients_and_their_products_with_the_noise():
    bank, _, _ = build([(5, 4)], 2, posterior=True)
    noise, gradients = torch.randn(3, bank.size), torch.randn(3, bank.size)
    for i, weight in enumerate((0.5, 0.3, 0.2)):
        bank.noise.copy_(noise[i])
        bank.perturb(masked=False)
        bank.local.copy_(gradients[i])
        bank.accumulate(weight, first=i == 0)
    weights = torch.tensor([[0.5], [0.3], [0.2]])
    torch.testing.assert_close(bank.grad[0], (weights * gradients).sum(0))
    torch.testing.assert_close(bank.grad[1], (weights * gradients * noise).sum(0))


def test_kept_counts_elements_of_kept_triplets():
    bank, _, _ = build([(5, 4), (7, 2)], 3, head=[(3,)])
    bank.mask[0, 0] = 0
    bank.mask[1, :2] = 0
    assert bank.kept() == 3 * (5 + 4 + 1 + 7 + 2 + 1) + 3 - (5 + 4 + 1) - 2 * (7 + 2 + 1)
