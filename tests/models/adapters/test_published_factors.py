"""The factors that adapted layers multiply with: the values and gradients of the layer's own."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayeslora_cli.models.adapters import published_factors
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear, join
from bayeslora_cli.models.adapters.published_factors import PublishedFactors, padded_rank

SIZE = st.integers(1, 9)


def layers_of(shapes, rank, *, adaptive, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index, (height, width) in enumerate(shapes):
        base = DenseLinear(nn.Linear(width, height))
        # small scales: outputs far from 0 lose digits before their sine is taken
        layer = LowRankLinear(base, rank, 0.5 + index / 8, singular_values=adaptive)
        for parameter in layer.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
        layer.base_layer.requires_grad_(False)
        found.append(layer)
    return found


def passed(layers, seed=1):
    """A number that depends on all layers' outputs."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for layer in layers:
        x = torch.randn(3, layer.lora_A.shape[1], generator=generator)
        total = total + layer(x).sin().sum()
    return total


def bank_of(layers):
    matrices = [
        Matrix(name=str(i), a=layer.lora_A, b=layer.lora_B, e=layer.lora_E)
        for i, layer in enumerate(layers)
    ]
    return AdapterBank(matrices, [], posterior=False)


def assert_gradients(bank, plain):
    """What the bank has collected is what the plain layers have got; of no pass it is 0."""
    for segment in bank.segments.values():
        index, _, name = segment.name.partition(".")
        mine, theirs = segment.view(bank.local), getattr(plain[int(index)], name).grad
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-4, segment.name


@torch.no_grad()
def change(bank, *sides):
    """Another theta, which the factors are to follow."""
    for layer in chain(*sides):
        layer.lora_B.mul_(1.5)
    bank.publish()


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(SIZE, SIZE), min_size=1, max_size=6), rank=st.integers(1, 5),
    adaptive=st.booleans(), unit=st.sampled_from([1, 4, 8]), seed=st.integers(0, 999),
)  # fmt: skip
def test_values_and_gradients_are_the_layers_own(shapes, rank, adaptive, unit, seed):
    """Whatever the rank is filled up to."""
    plain = layers_of(shapes, rank, adaptive=adaptive, seed=seed)
    banked = layers_of(shapes, rank, adaptive=adaptive, seed=seed)
    bank = bank_of(banked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published_factors, "padded_rank", lambda rank, *_: -(-rank // unit) * unit)
        bank.factors = PublishedFactors(bank, banked, torch.float32)
    assert banked[0].down.shape[0] == -(-rank // unit) * unit
    for _ in range(2):  # a second pass starts from nothing
        bank.zero_local()
        expected, found = passed(plain), passed(banked)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        for layer in plain:
            layer.zero_grad()
        expected.backward()
        found.backward()
        bank.collect()
        assert_gradients(bank, plain)
        change(bank, plain, banked)


@settings(max_examples=60, deadline=None)
@given(
    heights=st.lists(st.sampled_from([2, 3, 7]), min_size=2, max_size=4), units=st.integers(1, 3),
    others=st.integers(0, 3), width=SIZE, rank=st.integers(1, 4), adaptive=st.booleans(),
    unit=st.sampled_from([1, 4, 8]), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_joints(heights, units, others, width, rank, adaptive, unit, order):
    """Layers of one input in one product, wherever they stand in the bank, beside others."""
    many = len(heights)
    drawn = order.sample(range(many * units + others), many * units)
    shapes = [(2, width)] * (many * units + others)
    for place, index in enumerate(drawn):
        shapes[index] = (heights[place % many], width)
    plain = layers_of(shapes, rank, adaptive=adaptive, seed=1)
    banked = layers_of(shapes, rank, adaptive=adaptive, seed=1)
    bank = bank_of(banked)
    groups = [drawn[many * u : many * (u + 1)] for u in range(units)]
    joints = [join([banked[i] for i in group]) for group in groups]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published_factors, "padded_rank", lambda rank, *_: -(-rank // unit) * unit)
        bank.factors = PublishedFactors(bank, banked, torch.float32, joints)
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        bank.zero_local()
        found, expected = torch.zeros(()), torch.zeros(())
        for joint, group in zip(joints, groups, strict=True):
            for out, index in zip(joint(x), group, strict=True):
                torch.testing.assert_close(out, plain[index](x), rtol=1e-4, atol=1e-4)
                found = found + (1 + index) * out.sin().sum()
                expected = expected + (1 + index) * plain[index](x).sin().sum()
        for layer in plain:
            layer.zero_grad()
        found.backward()
        expected.backward()
        bank.collect()
        assert_gradients(bank, plain)
        change(bank, plain, banked)


def test_a_gpu_gets_whole_rows():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [padded_rank(r, torch.bfloat16, gpu) for r in (1, 3, 8, 9)] == [8, 8, 8, 16]
    assert [padded_rank(r, torch.float32, gpu) for r in (1, 3, 8, 9)] == [4, 4, 8, 12]
    assert [padded_rank(r, torch.bfloat16, cpu) for r in (1, 3, 8, 9)] == [1, 3, 8, 9]
