"""Bit operations against a count by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.methods.blora.bit_operations import Sizes, cost, multiplications

BITS = {"x": 8, "A": 4, "a": 16, "E": 2, "h": 8, "B": 2}


def test_a_small_module_by_hand():
    """3 inputs, 5 outputs, rank 2."""
    m = Sizes(width=3, height=5, rank=2, bits=BITS)
    assert m.adapter() == 3 * 2 * 8 * 4 + 2 * 16 * 2 + 5 * 2 * 8 * 2 == 416
    assert m.base() == 3 * 5 * 32 * 32  # neither operand is quantized
    assert m.storage_bits() == 2 * (3 * 4 + 5 * 2 + 2) == 48
    found = cost([m], init_rank=4)
    first = 1024 * (3 * 4 + 4 + 5 * 4)
    assert found.adapter_relative == 416 / first
    assert found.with_base_relative == (416 + 15360) / (first + 15360)
    assert found.storage_bytes == 6 + 6 * 4
    assert found.storage_relative == 30 / (4 * 4 * (3 + 5 + 1))
    with_base = Sizes(width=3, height=5, rank=2, bits=BITS | {"W": 4})
    assert with_base.base() == 3 * 5 * 8 * 4
    assert with_base.adapter() == m.adapter()


def test_multiplications():
    assert multiplications(3, 5, 2, ("A", "B", "E", "x", "a", "h")) == [6, 10, 2, 6, 2, 10]
    assert multiplications(3, 5, 2, ("x", "W")) == [6 + 15, 15]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 8)), min_size=1),
    st.sampled_from(list(BITS)),
)
def test_narrower_and_fewer_never_cost_more(shapes, operand):
    wide = dict.fromkeys(BITS, 16)
    costs = [
        cost([Sizes(width=w, height=h, rank=r, bits=bits) for w, h, r in shapes], init_rank=8)
        for bits in (wide, wide | {operand: 8})
    ]
    assert costs[1].adapter < costs[0].adapter < costs[0].adapter / costs[0].adapter_relative
    assert costs[1].storage_bytes <= costs[0].storage_bytes
    full = cost([Sizes(width=w, height=h, rank=8, bits={}) for w, h, _ in shapes], init_rank=8)
    assert full.adapter_relative == full.with_base_relative == full.storage_relative == 1


@pytest.mark.parametrize("ladder", ["2,4,8,16", "4,8", "2", " 8, 16"])
def test_ladders(ladder):
    from bayeslora_cli.config.values import parse_ladder

    assert parse_ladder(ladder) == tuple(int(part) for part in ladder.split(","))


@pytest.mark.parametrize("ladder", ["", "2,8", "4,2", "3", "2,4,8,16,32", "2;4"])
def test_no_ladders(ladder):
    from bayeslora_cli.config.values import parse_ladder

    with pytest.raises(ValueError, match="neighbours among them"):
        parse_ladder(ladder)
