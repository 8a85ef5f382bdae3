"""The algebra of plain LoRA: products stay what they were, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.models.adapters.layer import RANK_EPSILON
from bayeslora_cli.models.adapters.plain_lora import (
    SERVED_RANKS,
    LoraFactors,
    fold,
    fold_into_b,
    pad,
    plain_number,
    uniform,
    without_empty,
    without_empty_kinds,
)

RANKS = st.integers(0, 5)
SCALES = st.floats(1e-3, 1e3)
SEEDS = st.integers(0, 2**32 - 1)


def parts(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, 7), (rank, 1), (4, rank))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def product(factors):
    """What PEFT adds: its scaling is alpha / r."""
    if factors.rank == 0:
        return torch.zeros(4, 7, dtype=torch.float64)
    return factors.alpha / factors.rank * (factors.b @ factors.a)


@given(RANKS, SCALES, SEEDS)
def test_e_goes_into_a(rank, scale, seed):
    a, e, b = parts(rank, seed)
    factors = fold(a, e, b, scale)
    torch.testing.assert_close(product(factors), scale * b @ torch.diag(e[:, 0]) @ a)
    if rank:
        assert factors.alpha / rank == pytest.approx(scale, rel=1e-15)


@given(st.integers(1, 5), SCALES, SEEDS)
def test_plain_lora_stays_as_it_is(rank, scale, seed):
    a, _, b = parts(rank, seed)
    factors = fold(a, None, b, scale)
    assert torch.equal(factors.a, a)
    assert torch.equal(factors.b, b)


@given(RANKS, SCALES, SEEDS, st.booleans())
def test_e_and_the_scale_go_into_b(rank, scale, seed, singular):
    a, e, b = parts(rank, seed)
    factors = fold_into_b(a, e if singular else None, b, scale)
    assert torch.equal(factors.a, a)
    assert factors.alpha == rank
    e = e[:, 0] if singular else torch.ones(rank, dtype=torch.float64)
    torch.testing.assert_close(product(factors), scale * b @ torch.diag(e) @ a)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), SCALES, SEEDS)
def test_one_rank_and_one_alpha(ranks, scale, seed):
    before = {str(i): fold_into_b(*parts(r, seed + i), scale) for i, r in enumerate(ranks)}
    after = uniform(before)
    ((rank, alpha),) = {(f.rank, f.alpha) for f in after.values()}
    assert alpha == rank == min(r for r in SERVED_RANKS if r >= max(ranks))
    for name, factors in after.items():
        torch.testing.assert_close(product(factors), product(before[name]))
        assert torch.equal(factors.a[: before[name].rank], before[name].a)
        padding = slice(before[name].rank, None)
        assert not factors.a[padding].any()
        assert not factors.b[:, padding].any()


def test_the_epsilon_of_adaloras_scale_is_not_lost():
    """alpha / (3 + 1e-5) is off alpha / 3 by 3e-6: float64 sees it, and so must the product."""
    a, e, b = parts(2, 0)
    factors = pad(fold_into_b(a, e, b, 32 / (3 + RANK_EPSILON)), 4)
    exact = 32 / (3 + RANK_EPSILON) * b @ (e * a)
    assert (product(factors) - exact).abs().max() < 1e-13
    assert (32 / 3 * b @ (e * a) - exact).abs().max() > 1e-6


def test_empty_matrices_are_left_out_but_for_a_last_one():
    none, some = fold(*parts(0, 0), 3.0), fold(*parts(2, 0), 3.0)
    assert without_empty({"a": none, "b": some, "c": none}) == {"b": some}
    assert without_empty({}) == {}
    (name, left), = without_empty({"a": none, "b": none}).items()  # fmt: skip
    assert name == "a"
    assert left.rank == 1
    assert not product(left).any()


def test_kinds_of_matrices_that_are_all_empty_are_left_out():
    none, some = fold_into_b(*parts(0, 0), 3.0), fold_into_b(*parts(2, 0), 3.0)
    found = {"0.q": none, "0.k": none, "1.q": some, "1.k": none}
    assert without_empty_kinds(found).keys() == {"0.q", "1.q"}
    assert without_empty_kinds({"0.q": none, "0.k": none, "1.q": none}).keys() == {"0.q", "1.q"}


def test_ranks_that_no_server_takes_stay():
    assert next(iter(uniform({"q": fold_into_b(*parts(600, 0), 1.0)}).values())).rank == 600


def test_whole_numbers_are_ints():
    assert repr(plain_number(32.0)) == "32"
    assert plain_number(21.5) == 21.5


def test_factors_know_their_rank():
    assert LoraFactors(a=torch.zeros(3, 7), b=torch.zeros(4, 3), alpha=1.0).rank == 3
