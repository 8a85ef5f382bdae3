"""Groups of packed rows that a CPU computes together."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.models.packed.layout import (
    attend_by_length,
    attend_padded,
    equal_rows,
    row_lengths,
    similar_rows,
)


def test_rows_of_no_token_are_left_out():
    assert row_lengths(torch.tensor([0, 3, 5, 5, 5], dtype=torch.int32)) == [3, 2]


def test_runs_of_one_length():
    assert equal_rows([7, 7, 5, 2, 2, 7]) == [(2, 7), (1, 5), (2, 2), (1, 7)]
    assert equal_rows([]) == []


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0, [[5, 5], [4], [3, 3]]),
        (9, [[5, 5, 4], [3, 3]]),  # 25 - 16
        (10**6, [[5, 5, 4, 3, 3]]),
    ],
)
def test_similar_rows(most, expected):
    assert similar_rows([5, 5, 4, 3, 3], most) == expected
    # a row is never longer than the first of its group
    assert similar_rows([3, 5], most) == [[3], [5]]


def test_both_ways_give_each_row_its_own_attention():
    lengths = [4, 4, 3, 1]
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 5)

    def attend(q, k, v, inside=None):
        scores = q @ k.mT
        if inside is not None:
            scores = scores.masked_fill(~inside[:, None, None], -torch.inf)
        return scores.softmax(-1) @ v

    parts = (x.split(lengths, 2) for x in (q, k, v))
    expected = torch.cat([attend(*row) for row in zip(*parts, strict=True)], 2).transpose(1, 2)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    torch.testing.assert_close(attend_by_length(attend, q, k, v, equal_rows(lengths)), expected)
    torch.testing.assert_close(attend_padded(attend, q, k, v, offsets, 4), expected)
