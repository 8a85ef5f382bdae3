"""Packed batches, and the few sizes that they have on a GPU."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.data.batching import Feed, evaluation_order, largest_batch
from bayeslora_cli.data.packing import bucket, collate, pack, rows_of
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.tasks.objectives.causal import PADDING
from tests.support.decoders import CAUSAL, token_rows

CPU = torch.device("cpu")
LENGTHS = (5, 9, 3, 12, 2, 7)
PICKED = torch.tensor([3, 0, 4])


def test_rows_lie_one_after_the_other():
    rows = token_rows(LENGTHS)
    batch = pack(rows, PICKED, fixed=False)
    parts = [rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].long() for i in PICKED]
    assert torch.equal(batch["input_ids"], torch.cat(parts)[None])
    assert batch["position_ids"].tolist() == [[*range(12), *range(5), *range(2)]]
    assert batch["row_offsets"].tolist() == [0, 12, 17, 19]
    assert batch["row_offsets"].dtype is torch.int32
    assert batch["predicting"].tolist() == [*range(5, 11), 14, 15, 17]
    assert torch.equal(batch["targets"], batch["input_ids"][0, batch["predicting"] + 1])
    assert rows_of(batch) == 3
    assert "longest" not in batch


def test_padded_rows_predict_the_same():
    rows, twin = token_rows(LENGTHS), token_rows(LENGTHS, packed=False)
    packed, padded = (collate(split, PICKED, 12, fixed=False) for split in (rows, twin))
    assert padded["input_ids"].shape == (3, 12)
    assert torch.equal(packed["targets"], padded["targets"])
    ids = padded["input_ids"].flatten()
    assert torch.equal(ids[padded["predicting"] + 1], padded["targets"])
    assert rows_of(padded) == 3


@pytest.mark.parametrize("packed", [True, False])
def test_fixed_sizes_add_what_nothing_counts(packed):
    rows = token_rows(LENGTHS, packed=packed)
    batch, plain = (collate(rows, PICKED, 12, fixed=fixed) for fixed in (True, False))
    real = len(plain["targets"])
    assert torch.equal(batch["targets"][:real], plain["targets"])
    assert (batch["targets"][real:] == PADDING).all()
    scores = torch.arange(len(batch["targets"]), dtype=torch.float32)
    scores[real:] = 0.0
    found = CAUSAL.predict(scores, batch)
    assert torch.equal(found[:3], CAUSAL.predict(scores[:real], plain))
    assert (found[3:] == 0).all()
    assert CAUSAL.loss(scores, batch) == CAUSAL.loss(scores[:real], plain)
    if not packed:
        return
    offsets = batch["row_offsets"]
    assert torch.equal(offsets[:4], plain["row_offsets"])
    assert offsets[-1] == batch["input_ids"].shape[1] == 64
    assert offsets.diff().max() <= batch["longest"].shape[1]
    starts = offsets[:-1][offsets.diff() > 0].long()
    assert (batch["position_ids"][0, starts] == 0).all()
    assert batch["position_ids"].max() == plain["position_ids"].max()


def test_the_few_rows_are_such_of_which_something_counts():
    rows = token_rows((3, 30, 30, 5, *[20] * 7))
    assert rows.counted is not None
    for row in (1, 2, 4):  # as of long prompts whose answers were cut away
        rows.counted[rows.offsets[row] : rows.offsets[row + 1]] = False
    (few,) = Batches(rows, len(rows), CPU).few
    assert len(few["targets"]) == 6 * 10 + 2 + 1
    rows.counted.zero_()
    (few,) = Batches(rows, len(rows), CPU).few
    assert len(few["targets"]) == 0


def test_few_sizes():
    sizes = {bucket(n, least=64, per_octave=8) for n in range(1, 8193)}
    assert len(sizes) < 45
    for n in range(1, 8193):
        found = bucket(n, least=64, per_octave=8)
        assert n <= found <= max(n + 63, n * 9 / 8)
        assert found % 64 == 0
    assert [bucket(n, least=1, per_octave=4) for n in range(1, 12)] == [*range(1, 9), 10, 10, 12]


def test_a_feed_counts_the_tokens_of_its_batch():
    rows = token_rows(LENGTHS)
    batch = Feed(rows, CPU).batch(PICKED)
    assert batch["count"] == len(batch["targets"]) == rows.counts[PICKED].sum()


def test_a_batch_may_count_nothing():
    rows = token_rows((4, 6))
    rows.counted[:4] = False
    batch = pack(rows, torch.tensor([0]), fixed=False)
    assert len(batch["targets"]) == 0
    assert CAUSAL.loss(torch.zeros(0), batch) == 0
    assert CAUSAL.predict(torch.zeros(0), batch).tolist() == [[0, 0]]


def test_evaluation_limits_tokens(monkeypatch):
    monkeypatch.setattr("bayeslora_cli.data.batching.EVALUATED_TOKENS", 20)
    order = evaluation_order(token_rows(LENGTHS), 4)
    assert [batch.tolist() for batch in order] == [[3], [1, 5], [0, 2, 4]]


@pytest.mark.parametrize("packed", [True, False])
def test_the_largest_batch_has_the_longest_rows(packed):
    batch = largest_batch(token_rows(LENGTHS, packed=packed), 2, CPU)
    assert batch["input_ids"].numel() == (21 if packed else 24)


@pytest.mark.parametrize(
    ("lengths", "expected"), [((32, 32), (1, 32)), ((32, 31), (0, 64)), ((33, 33), (0, 64))]
)
def test_rows_of_one_length_are_told(lengths, expected):
    """If nothing fills the batch; on machines whose kernels are faster then."""
    rows, all_ = token_rows(lengths), torch.arange(len(lengths))
    assert pack(rows, all_, fixed=True, even=True)["longest"].shape == expected
    assert pack(rows, all_, fixed=True)["longest"].shape == (0, 64)
