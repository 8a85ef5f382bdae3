"""A packed run draws the batches of a padded one: its rows, per step and process, in that order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.execution.processes import SingleProcess
from bayeslora_cli.execution.torch_processes import TorchProcesses
from bayeslora_cli.training.loop import train
from tests.training.test_loop import options

BUSY = {"batch_size": 10, "grad_accum": 2, "max_steps": 11, "checkpoint_every": "4"}


@pytest.fixture
def drawn(backbone, rte, tmp_path, monkeypatch):
    """Train, and return the rows of each micro-batch: drawn(name, packing, ...)."""
    make, found = Feed.batch, []

    def batch(feed, indices):
        found.append(indices.tolist())
        assert feed.split.packed == packed
        made = make(feed, indices)
        assert torch.equal(made["labels"], feed.split.labels[indices])
        return made

    monkeypatch.setattr(Feed, "batch", batch)

    def run_it(name, packing, **changes):
        nonlocal packed
        packed = packing == "on"
        found.clear()
        train(resolve(options(backbone, rte, tmp_path / name, packing=packing, **BUSY | changes)))
        return list(found)

    packed = False
    return run_it


@pytest.mark.parametrize("changes", [{}, {"group_by_length": True}, {"grad_accum": 1}])
def test_a_packed_run_draws_the_same_rows(changes, drawn):
    packed, padded = (drawn(packing, packing, **changes) for packing in ("on", "off"))
    assert packed == padded
    assert len(packed) >= BUSY["max_steps"]


@pytest.mark.parametrize("rank", [0, 2])
def test_each_of_several_processes_gets_the_same_rows(rank, drawn, monkeypatch):
    place = SimpleNamespace(world=3, rank=rank, _weight=torch.ones(()))
    monkeypatch.setattr(
        SingleProcess,
        "share",
        lambda _, rows, counts=None: TorchProcesses.share(place, rows, counts),
    )
    packed, padded = (drawn(packing, packing) for packing in ("on", "off"))
    assert packed == padded
    assert max(map(len, packed)) == 2  # of 10 rows, in three processes and two micro-batches


def test_it_goes_on_in_the_middle_of_an_epoch(drawn, killed_at):
    whole = drawn("whole", "off")
    with killed_at(6):
        drawn("parts", "on")
    # from the checkpoint of step 4 on; an epoch has seven steps
    assert drawn("parts", "on") == whole[2 * 4 :]
