"""The order in which rows are seen, and the width of their batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.data.batching import (
    TrainOrder,
    epoch_order,
    evaluation_order,
    padded_width,
    steps_per_epoch,
)
from bayeslora_cli.data.tokenised_split import TokenisedSplit


def test_epoch_orders_differ_and_repeat():
    orders = {(s, e): tuple(epoch_order(50, s, e).tolist()) for s in range(6) for e in range(6)}
    assert len(set(orders.values())) == 36
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    state = torch.random.get_rng_state()
    assert tuple(epoch_order(50, 3, 4).tolist()) == orders[3, 4]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({tuple(epoch_order(50, 2**k, 0).tolist()) for k in range(64)}) == 64


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_sees_every_row_once(n, batch_size, seed, epoch):
    steps = steps_per_epoch(n, batch_size)
    order = TrainOrder(n, batch_size, seed)
    batches = [order.indices(epoch * steps + k) for k in range(steps)]
    assert torch.equal(torch.cat(batches), epoch_order(n, seed, epoch))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size


def test_an_order_depends_on_the_step_alone():
    forwards = TrainOrder(10, 4, 7)
    batches = [forwards.indices(step).tolist() for step in range(9)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    jumping = TrainOrder(10, 4, 7)
    assert [jumping.indices(step).tolist() for step in (8, 0, 4, 3)] == [
        batches[step] for step in (8, 0, 4, 3)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 45))
def test_evaluation_order(lengths, batch_size):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    split = TokenisedSplit(
        tokens=torch.zeros(sum(lengths), dtype=torch.int32),
        offsets=offsets,
        token_types=None,
        labels=None,
        pad_id=0,
    )
    batches = evaluation_order(split, batch_size)
    rows = torch.cat(batches)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert rows.tolist() == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    assert max(map(len, batches)) <= batch_size


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=400),
    batch_size=st.integers(1, 16), seed=st.integers(0, 9),
)  # fmt: skip
def test_grouping_pads_less_and_shows_each_row_once(lengths, batch_size, seed):
    found, n = torch.tensor(lengths), len(lengths)
    plain, order = TrainOrder(n, batch_size, seed), TrainOrder(n, batch_size, seed, group_by=found)
    steps = steps_per_epoch(n, batch_size)
    for epoch in range(2):
        seen = [order.indices(s) for s in range(epoch * steps, (epoch + 1) * steps)]
        other = [plain.indices(s) for s in range(epoch * steps, (epoch + 1) * steps)]
        assert sorted(torch.cat(seen).tolist()) == list(range(n))
        assert [len(b) for b in seen] == [len(b) for b in other]

        def padded(batches):
            return sum(len(b) * int(found[b].max()) for b in batches)

        assert padded(seen) <= padded(other)
        if n % batch_size:
            assert torch.equal(seen[-1], other[-1])
        pool = 50  # rows move within a pool alone: what is drawn late stays late
        for start in range(0, n // batch_size, pool):
            stop = min(start + pool, n // batch_size)
            mine, theirs = (torch.cat(x[start:stop]) for x in (seen, other))
            assert sorted(mine.tolist()) == sorted(theirs.tolist())


def test_groups_come_in_no_order_of_length():
    lengths = torch.arange(1600)
    order = TrainOrder(1600, 32, 1, group_by=lengths)
    first = [int(order.indices(s).min()) for s in range(50)]
    assert first != sorted(first)
    assert all(int(b.max() - b.min()) == 31 for b in map(order.indices, range(50)))


def test_groups_of_one_length_come_at_random():
    """Of rows as alike as sentences are: the shortest batch is as often late as early."""
    lengths = torch.arange(1600) % 20
    order = TrainOrder(1600, 32, 1, group_by=lengths)
    epochs = [[int(lengths[order.indices(50 * e + s)].sum()) for s in range(50)] for e in range(90)]
    for extreme in (min, max):
        places = [epoch.index(extreme(epoch)) for epoch in epochs]
        last = [49 - epoch[::-1].index(extreme(epoch)) for epoch in epochs]
        assert abs((sum(places) + sum(last)) / 180 - 24.5) < 5


@pytest.mark.parametrize(
    ("length", "width"), [(1, 8), (16, 16), (17, 24), (65, 80), (128, 128), (129, 160), (250, 250)]
)
def test_few_widths_on_a_gpu(length, width):
    assert padded_width(length, 250) == width
