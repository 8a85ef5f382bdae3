"""What a run says about its gates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bayeslora_cli.methods.blora.bit_operations import Sizes
from bayeslora_cli.methods.blora.report import _collapsed


@pytest.mark.parametrize(
    ("wide", "ranks", "said"),
    [
        ({}, [1, 1, 1], "rank 1 and 2 bits: lower --lambda-rank and --lambda-quant"),
        ({"a": 16, "E": 16}, [1, 1, 1], "rank 1 and 2 bits"),  # their share of the cost is small
        ({"x": 16}, [1, 1, 1], "rank 1: lower --lambda-rank"),
        ({}, [1, 1, 3], "2 bits: lower --lambda-quant"),
        ({"x": 16}, [1, 1, 3], None),
    ],
)
def test_collapse_of_ranks_or_of_widths(wide, ranks, said):
    bits = dict.fromkeys("xAaEhB", 2) | wide
    gates = SimpleNamespace(
        over_ranks=True, over_widths=True, rank=3, plan=SimpleNamespace(ladder=(2, 4, 8, 16))
    )
    sizes = [Sizes(width=300, height=300, rank=rank, bits=bits) for rank in ranks]
    found = _collapsed(gates, sizes)
    assert found == said or f"collapsed to {said}" in found
