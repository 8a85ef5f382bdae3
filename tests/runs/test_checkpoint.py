"""The training state to disk and back."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest
import torch

from bayeslora_cli.config.values import parse_interval
from bayeslora_cli.errors import RunDirError, StorageError
from bayeslora_cli.runs import checkpoint
from bayeslora_cli.runs.checkpoint import COMPLETE, SCALARS, TENSORS, Checkpoints, read
from bayeslora_cli.training import state
from bayeslora_cli.training.state import BestSoFar, Generators, InputChecksums, LoopState
from tests.training.test_step import batches, make_step


def parts_of(step, noise):
    return {
        "bank": step.network.bank,
        "optimizer": step.optimizer,
        "allocator": step.allocator,
        "step": step,
        "generators": Generators(torch.device("cpu"), noise),
        "loop": LoopState(),
    }


@pytest.mark.parametrize(("optimizer", "criterion"), [("ivon", "snr"), ("adamw", "sensitivity")])
def test_a_restored_step_goes_on_to_the_bit(optimizer, criterion, backbone, store):
    """With dropout on: torch's own generator is part of the state."""
    model, data = backbone("bert", 0.1), batches()
    step = make_step(model, optimizer, criterion)
    noise = getattr(step.optimizer, "generator", torch.Generator())
    torch.manual_seed(4)
    for t in range(25):
        step(t, [data[t]])
    step.allocator.fetch_history()
    store().save(25, parts_of(step, noise))
    for t in range(25, 50):
        step(t, [data[t]])

    other = make_step(model, optimizer, criterion)
    other_noise = getattr(other.optimizer, "generator", torch.Generator())
    torch.manual_seed(99)
    assert store().restore(parts_of(other, other_noise))
    for t in range(25, 50):
        other(t, [data[t]])
    for name, part in parts_of(step, noise).items():
        if name != "allocator":
            assert part.scalars() == parts_of(other, other_noise)[name].scalars(), name
        for key, value in part.tensors().items():
            assert torch.equal(value, parts_of(other, other_noise)[name].tensors()[key]), key
    assert step.allocator.fetch_history()[0][:2] == other.allocator.fetch_history()[0][:2]


def test_unfetched_allocations_are_not_lost_silently(backbone, store):
    step = make_step(backbone("bert"), "adamw", "sensitivity")
    for t in range(13):
        step(t, [batches()[t]])
    with pytest.raises(AssertionError, match="were not fetched"):
        store().save(13, {"allocator": step.allocator})
    assert names(store()) == []


@pytest.fixture
def parts(backbone):
    """A small state whose bank says which save it is of."""
    step = make_step(backbone("bert"), "adamw", "sensitivity")
    return {"bank": step.network.bank, "optimizer": step.optimizer, "loop": LoopState()}


@pytest.fixture
def store(tmp_path):
    def make(every="auto"):
        logs = (tmp_path / "metrics.jsonl", tmp_path / "ranks.jsonl")
        return Checkpoints(tmp_path / "checkpoint", logs, parse_interval(every))

    return make


def save(store, parts, step, log="{}\n"):
    parts["bank"].mean.fill_(step)
    parts["loop"].step = step
    if log is not None:
        store.logs["metrics.jsonl"].write_text(log)
    return store.save(step, parts)


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_the_newest_two_are_kept(store, parts):
    for step in (5, 20, 100, 999_999, 1_000_000):
        save(store(), parts, step)
    assert names(store()) == ["step-1000000", "step-999999"]
    parts["bank"].mean.zero_()
    assert store().restore(parts)
    assert parts["loop"].step == 1_000_000
    assert bool((parts["bank"].mean == 1e6).all())
    store().save(1_000_000, parts, keep=1)
    assert names(store()) == ["step-1000000"]


def test_the_logs_come_back_with_the_state(store, parts):
    save(store(), parts, 3, log='{"step": 2}\n')
    metrics, ranks = store().logs.values()
    metrics.write_text('{"step": 2}\n{"step": 3}\n{"st')
    ranks.write_text("later than the state\n")
    assert store().restore(parts)
    assert metrics.read_text() == '{"step": 2}\n'
    assert not ranks.exists()


def test_without_a_state_the_logs_go(store, parts):
    store().logs["metrics.jsonl"].write_text("of a run that was killed before its first state")
    before = parts["bank"].mean.clone()
    assert not store().restore(parts)
    assert torch.equal(parts["bank"].mean, before)
    assert not store().logs["metrics.jsonl"].exists()


def flip(path, data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 4
    path.write_bytes(changed)


DAMAGE = {
    "cut": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "emptied": lambda path, data: path.write_bytes(b""),
    "zeroed": lambda path, data: path.write_bytes(bytes(len(data))),
    "a bit": flip,
    "longer": lambda path, data: path.write_bytes(data + b"\0"),
    "gone": lambda path, data: path.unlink(),
    "a directory": lambda path, data: (path.unlink(), path.mkdir()),
    "nested": lambda path, data: path.write_bytes(b"[" * 10**5),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [TENSORS, SCALARS, COMPLETE, "metrics.jsonl"])
def test_a_damaged_state_is_skipped_for_the_one_before(damage, name, store, parts, caplog):
    for step in (10, 20):
        save(store(), parts, step, log=f"{step}\n")
    path = store().directory / "step-000020" / name
    DAMAGE[damage](path, path.read_bytes())
    with caplog.at_level("WARNING", "bayeslora"):
        assert store().restore(parts)
    assert "step-000020 is skipped, it is damaged: " in caplog.text
    assert parts["loop"].step == 10
    assert bool((parts["bank"].mean == 10).all())
    assert store().logs["metrics.jsonl"].read_text() == "10\n"
    assert names(store()) == ["step-000010"], "it must not count as one of the newest two"


def test_if_all_are_damaged_the_run_starts_anew(store, parts, caplog):
    for step in (10, 20):
        save(store(), parts, step)
        (store().directory / f"step-{step:06}" / COMPLETE).unlink()
    parts["bank"].mean.fill_(0.5)
    with caplog.at_level("WARNING", "bayeslora"):
        assert not store().restore(parts)
    assert "starts again from the beginning" in caplog.text
    assert bool((parts["bank"].mean == 0.5).all()), "nothing of a damaged state is taken"
    assert names(store()) == []


def test_leftovers_of_kills_are_cleared_away(store, parts):
    save(store(), parts, 10)
    directory = store().directory
    (directory / ".step-000020.tmp").mkdir()
    (directory / "step-000010").rename(directory / ".step-000010.old")
    assert store().restore(parts)
    assert parts["loop"].step == 10
    assert names(store()) == ["step-000010"]


def test_links_and_other_names_are_no_states(store, parts, tmp_path):
    save(store(), parts, 10)
    directory = store().directory
    (directory / "step-000010").rename(tmp_path / "elsewhere")
    (directory / "step-000010").symlink_to(tmp_path / "elsewhere")
    for name in ("step-", "step-12", "step-00001x", "step-../..".replace("/", "_")):
        (directory / name).mkdir()
    assert not store().restore(parts)


def test_a_file_name_in_the_marker_leads_nowhere(store, parts, tmp_path):
    save(store(), parts, 10)
    marker = store().directory / "step-000010" / COMPLETE
    written = json.loads(marker.read_text())
    for name in ("../../secret", "/etc/passwd"):
        marker.write_text(json.dumps(written | {name: written[TENSORS]}))
        with pytest.raises(ValueError, match="do not belong to a checkpoint"):
            read(marker.parent, store().logs)


def test_a_full_disk_leaves_the_earlier_states(store, parts, monkeypatch):
    for step in (10, 20):
        save(store(), parts, step)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, call in ((checkpoint, "save_file"), (os, "fsync"), (os, "rename"), (os, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, full)
            with pytest.raises(StorageError, match="step-000030: No space left") as caught:
                save(store(), parts, 30)
        assert caught.value.exit_code == 1
        assert names(store()) == ["step-000010", "step-000020"], call
    assert store().restore(parts)
    assert parts["loop"].step == 20


def test_a_state_of_something_else_is_refused(store, parts, backbone):
    """Not skipped: its files are whole, and it is the user who knows what happened."""
    save(store(), parts, 10)
    step = make_step(backbone("bert"), "adamw", "sensitivity")
    with pytest.raises(RunDirError, match="has no allocator"):
        store().restore({**parts, "allocator": step.allocator})
    other = make_step(backbone("distilbert"), "adamw", "sensitivity")
    with pytest.raises(RunDirError, match="another run: bank/mean"):
        store().restore({"bank": other.network.bank})
    scalars = parts["loop"].scalars
    parts["loop"] = SimpleNamespace(tensors=dict, scalars=lambda: {**scalars(), "unknown": 1})
    store().save(20, parts)
    with pytest.raises(RunDirError, match="of another version: loop"):
        store().restore({"loop": LoopState()})


def test_changed_inputs_are_refused(store):
    store().save(1, {"inputs": InputChecksums({"the weights have": "a", "the data have": "b"})})
    assert store().restore(
        {"inputs": InputChecksums({"the weights have": "a", "the data have": "b"})}
    )
    with pytest.raises(RunDirError, match=r"^the data have changed since the run was begun"):
        store().restore({"inputs": InputChecksums({"the weights have": "a", "the data have": "c"})})


# ---- when


def test_every_so_many_steps(store):
    assert [s for s in range(1, 20) if store("6").due(s)] == [6, 12, 18]


@pytest.mark.parametrize(
    ("every", "took", "wait"),
    [("30s", 0, 30), ("30s", 100, 30), ("2h", 0, 7200), ("auto", 0, 60), ("auto", 0.25, 60),
     ("auto", 2, 400), ("auto", 9, 1800)],
)  # fmt: skip
def test_every_so_often(every, took, wait, store, parts, monkeypatch):
    """Without an interval from the user, checkpoints take at most half a percent of the time."""
    clock = 1000.0
    monkeypatch.setattr(checkpoint, "perf_counter", lambda: clock)
    states = store(every)
    write = checkpoint.write

    def slow(*arguments):
        nonlocal clock
        clock += took
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    assert save(states, parts, 1) == took
    clock += wait - 0.5
    assert not states.due(2)
    clock += 1
    assert states.due(2)


def test_a_large_state_waits_longer_for_its_first_checkpoint(store, monkeypatch):
    clock = 1000.0
    monkeypatch.setattr(checkpoint, "perf_counter", lambda: clock)
    states = store("auto")
    large = torch.zeros(1).expand(10**9)  # 4 GB, without storage: 20 s on a slow disk
    states.restore({"large": SimpleNamespace(tensors=lambda: {"t": large})})
    clock += 20 * 200 - 1
    assert not states.due(1)
    clock += 2
    assert states.due(1)


# ---- generators


def test_generators_go_back(monkeypatch):
    monkeypatch.setattr(state, "STEPS_BACK", 5)
    noise = torch.Generator().manual_seed(1)
    generators = Generators(torch.device("cpu"), noise)
    drawn = {}
    for step in range(9):
        generators.note(step)
        drawn[step] = (torch.rand(1).item(), torch.rand(1, generator=noise).item())
    for step in (8, 4):
        assert generators.rewind(step)
        assert drawn[step] == (torch.rand(1).item(), torch.rand(1, generator=noise).item())
    assert not generators.rewind(3)


def test_best_keeps_the_earlier_of_two_equals(backbone):
    bank = make_step(backbone("bert"), "ivon", "snr").network.bank
    best = BestSoFar(bank, posterior=True)
    offers = [(0, 0.5, False), (1, 0.9, False), (2, 0.7, True), (3, 0.7, True), (4, 0.6, True)]
    kept = [best.offer({"step": s}, v, at_budget=b) for s, v, b in offers]
    assert kept == [False, False, True, False, False]
    assert {k: r["step"] for k, r in best.records.items()} == {
        "best": 1, "best_at_budget": 2, "last": 4,
    }  # fmt: skip
