"""The training state to disk and back."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli import checkpoint
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.state import BestSoFar, Generators, Loop

from .test_step import batches, make_step


def parts_of(step, noise):
    return {
        "bank": step.network.bank,
        "optimizer": step.optimizer,
        "allocator": step.allocator,
        "step": step,
        "generators": Generators(torch.device("cpu"), noise),
        "loop": Loop(),
    }


@pytest.mark.parametrize(("optimizer", "criterion"), [("ivon", "snr"), ("adamw", "sensitivity")])
def test_a_restored_step_goes_on_to_the_bit(optimizer, criterion, backbone, tmp_path):
    """With dropout on: torch's own generator is part of the state."""
    model, data = backbone("bert", 0.1), batches()
    step = make_step(model, optimizer, criterion)
    noise = getattr(step.optimizer, "generator", torch.Generator())
    torch.manual_seed(4)
    for t in range(25):
        step(t, [data[t]])
    step.allocator.fetch_history()
    checkpoint.save(tmp_path / "c", parts_of(step, noise))
    for t in range(25, 50):
        step(t, [data[t]])

    other = make_step(model, optimizer, criterion)
    other_noise = getattr(other.optimizer, "generator", torch.Generator())
    torch.manual_seed(99)
    checkpoint.load(tmp_path / "c", parts_of(other, other_noise))
    for t in range(25, 50):
        other(t, [data[t]])
    for name, part in parts_of(step, noise).items():
        if name != "allocator":
            assert part.scalars() == parts_of(other, other_noise)[name].scalars(), name
        for key, value in part.tensors().items():
            assert torch.equal(value, parts_of(other, other_noise)[name].tensors()[key]), key
    assert step.allocator.fetch_history()[0][:2] == other.allocator.fetch_history()[0][:2]


def test_unfetched_allocations_are_not_lost_silently(backbone, tmp_path):
    step = make_step(backbone("bert"), "adamw", "sensitivity")
    for t in range(13):
        step(t, [batches()[t]])
    with pytest.raises(AssertionError, match="nobody has fetched"):
        checkpoint.save(tmp_path / "c", {"allocator": step.allocator})
    assert not (tmp_path / "c").exists()


def test_faults(backbone, tmp_path):
    step = make_step(backbone("bert"), "adamw", "sensitivity")
    parts = {"bank": step.network.bank, "optimizer": step.optimizer}
    with pytest.raises(RunDirError, match="cannot be read"):
        checkpoint.load(tmp_path / "none", parts)
    checkpoint.save(tmp_path / "c", parts)
    with pytest.raises(RunDirError, match="has no allocator"):
        checkpoint.load(tmp_path / "c", {**parts, "allocator": step.allocator})
    other = make_step(backbone("distilbert"), "adamw", "sensitivity")
    with pytest.raises(RunDirError, match="another run: bank/mean"):
        checkpoint.load(tmp_path / "c", {"bank": other.network.bank})
    for name in (checkpoint.TENSORS, checkpoint.SCALARS):
        whole = (tmp_path / "c" / name).read_bytes()
        (tmp_path / "c" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RunDirError, match="cannot be read"):
            checkpoint.load(tmp_path / "c", parts)
        (tmp_path / "c" / name).write_bytes(whole)


def test_best_keeps_the_earlier_of_two_equals(backbone):
    bank = make_step(backbone("bert"), "ivon", "snr").network.bank
    best = BestSoFar(bank, posterior=True)
    offers = [(0, 0.5, False), (1, 0.9, False), (2, 0.7, True), (3, 0.7, True), (4, 0.6, True)]
    kept = [best.offer({"step": s}, v, at_budget=b) for s, v, b in offers]
    assert kept == [False, False, True, False, False]
    assert {k: r["step"] for k, r in best.records.items()} == {
        "best": 1, "best_at_budget": 2, "last": 4,
    }  # fmt: skip
