"""Run directories: atomic writes under faults, claims, and cutting back to a checkpoint."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli import rundir
from bayeslora_cli.config import RunConfig, flag
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.glue import TASKS
from bayeslora_cli.resolve import resolve
from bayeslora_cli.rundir import RunDir, replacing, write_json, write_text

CONFIG = RunConfig()


def tree(path):
    """What lies under a path: relative name -> bytes, None for a directory."""
    return {
        str(p.relative_to(path)): None if p.is_dir() else p.read_bytes() for p in path.rglob("*")
    }


def put(path, kind, content):
    """A file or a directory with something in it."""
    if kind == "file":
        path.write_text(content)
    elif kind == "directory":
        (path / "sub").mkdir(parents=True)
        (path / "sub" / content).write_text(content)
        (path / "top").write_text(content)


# ---- atomic writes


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("before", ["nothing", "same"])
def test_success_replaces_all_of_it(tmp_path, kind, before):
    """A directory is not merged with the one it replaces, and nothing else stays behind."""
    put(tmp_path / "thing", kind if before == "same" else "nothing", "old")
    with replacing(tmp_path / "thing") as temporary:
        assert temporary.parent == tmp_path, "a rename is atomic on one file system only"
        assert not temporary.exists()
        put(temporary, kind, "new")
    put(tmp_path / "wanted", kind, "new")
    found = tree(tmp_path)
    assert {n for n in found if "/" not in n} == {"thing", "wanted"}
    for name, content in found.items():
        if name.startswith("wanted"):
            assert found[name.replace("wanted", "thing")] == content
    assert len(found) == 2 * sum(name.startswith("wanted") for name in found)


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("before", ["nothing", "same"])
@pytest.mark.parametrize("written", ["nothing", "something"])
def test_an_exception_leaves_the_old_thing(tmp_path, kind, before, written, error):
    put(tmp_path / "thing", kind if before == "same" else "nothing", "old")
    there = tree(tmp_path)

    def write():
        with replacing(tmp_path / "thing") as temporary:
            put(temporary, kind if written == "something" else "nothing", "new")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == there


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_nothing_is_seen_before_it_is_whole(tmp_path, kind):
    put(tmp_path / "thing", kind, "old")
    put(tmp_path / "copy", kind, "old")
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, kind, "new")
        if kind == "file":
            assert (tmp_path / "thing").read_text() == "old"
        else:
            assert tree(tmp_path / "thing") == tree(tmp_path / "copy")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_flushed_before_the_name_appears(tmp_path, monkeypatch, kind):
    """After a power cut the new name must not stand for blocks that never reached the disk."""
    events = []
    rename, fsync = Path.rename, os.fsync

    def noted_rename(self, target):
        events.append(("rename", str(target)))
        return rename(self, target)

    def noted_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(rundir.os, "fsync", noted_fsync)
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, kind, "new")
    at = events.index(("rename", str(tmp_path / "thing")))
    inodes = {p.stat().st_ino for p in (tmp_path / "thing", *(tmp_path / "thing").rglob("*"))}
    assert {inode for _, inode in events[:at]} >= inodes
    assert ("fsync", tmp_path.stat().st_ino) in events[at:], "the directory's entry itself"


def test_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_leftovers_of_this_process_do_no_harm(tmp_path):
    """A killed process's temporary, which nobody cleared away."""
    for kind in ("file", "directory"):
        with replacing(tmp_path / kind) as temporary:
            put(temporary, kind, "x")
        put(temporary, kind, "leftover")
        with replacing(tmp_path / kind) as temporary:
            assert not temporary.exists()
            put(temporary, kind, "new")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "directory"}
    assert (tmp_path / "directory" / "sub" / "new").is_file()


def test_an_old_directory_of_a_killed_process_does_no_harm(tmp_path):
    """Killed between the rename and the removal; the next process has the same number."""
    put(tmp_path / "thing", "directory", "old")
    put(tmp_path / ".thing.old", "directory", "older")
    with replacing(tmp_path / "thing") as temporary:
        put(temporary, "directory", "new")
    assert (tmp_path / "thing" / "sub" / "new").is_file()


def test_a_failed_rename_brings_the_old_directory_back(tmp_path, monkeypatch):
    """Or the checkpoint is gone from where a resume looks for it, and training starts at 0."""
    put(tmp_path / "thing", "directory", "old")
    there = tree(tmp_path)
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), replacing(tmp_path / "thing") as temporary:
        put(temporary, "directory", "new")
    assert tree(tmp_path) == there


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path, value):
    """NaN is no JSON: other readers would refuse the whole file."""
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.5, "names": ["ä"]})
    there = tree(tmp_path)
    assert json.loads(path.read_bytes()) == {"loss": 1.5, "names": ["ä"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"nested": [{"loss": value}]})
    assert tree(tmp_path) == there


# ---- claiming


def test_begin_claims_once(tmp_path):
    run = RunDir(tmp_path / "model" / "name" / "seed-1")
    assert not run.started
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    assert run.started
    assert not run.finished
    assert run.read_config() == CONFIG
    assert RunDir.open(run.path).read_config() == CONFIG
    there = tree(run.path)
    run.begin(CONFIG, TASKS["rte"], overwrite=False)  # a resume
    assert tree(run.path) == there


def test_begin_takes_an_empty_directory(tmp_path):
    RunDir(tmp_path).begin(CONFIG, TASKS["rte"], overwrite=False)
    assert RunDir.open(tmp_path).started


OTHERS = {
    "lr": 0.25, "seed": 7, "precision": "bf16", "t_final": 9, "max_steps": 5, "data": "elsewhere",
    "target_modules": ("dense",), "criterion": "magnitude", "init_rank": 12, "epochs": 1.5,
    "schedule_steps": 12,
}  # fmt: skip
INDIFFERENT = {
    "device": "cpu", "log_every": 3, "eval_batch_size": 2, "output": "o", "overwrite": True,
    "gradient_checkpointing": True,
}  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    changed=st.sets(st.sampled_from(sorted(OTHERS))),
    indifferent=st.sets(st.sampled_from(sorted(INDIFFERENT))),
)
def test_begin_names_each_difference(tmp_path_factory, changed, indifferent):
    """With the flag and both values; and only what decides the result counts."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    there = tree(run.path)
    now = replace(
        CONFIG, **{n: OTHERS[n] for n in changed}, **{n: INDIFFERENT[n] for n in indifferent}
    )
    if not changed:
        run.begin(now, TASKS["rte"], overwrite=False)
    else:
        with pytest.raises(RunDirError) as caught:
            run.begin(now, TASKS["rte"], overwrite=False)
        message = str(caught.value)
        for name in changed:
            assert f"{flag(name)} {getattr(CONFIG, name)} there, {OTHERS[name]} now" in message
        assert message.count(" there, ") == len(changed)
        assert "--overwrite" in message
        assert str(run.path) in message
    assert tree(run.path) == there


@pytest.mark.parametrize("overwrite", [False, True])
def test_begin_refuses_what_is_no_run(tmp_path, overwrite):
    """--output ~ must not cost anybody a directory, least of all with --overwrite."""
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    there = tree(tmp_path)
    with pytest.raises(RunDirError, match="not empty and is no run"):
        RunDir(tmp_path).begin(CONFIG, TASKS["rte"], overwrite=overwrite)
    assert tree(tmp_path) == there


def test_overwrite_clears(tmp_path):
    """Nothing of the old run may mix with the new one: not even an unfinished checkpoint."""
    run = RunDir(tmp_path / "run")
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    put(run.checkpoint, "directory", "state")
    run.append(run.metrics, [{"step": 1}])
    write_json(run.result, {})
    assert run.finished
    other = replace(CONFIG, lr=0.5)
    run.begin(other, TASKS["rte"], overwrite=True)
    assert set(tree(run.path)) == {"config.toml", "task.json"}
    assert run.read_config() == other
    assert not run.finished


def test_overwrite_of_nothing_begins(tmp_path):
    RunDir(tmp_path / "run").begin(CONFIG, TASKS["rte"], overwrite=True)
    assert RunDir.open(tmp_path / "run").read_config() == CONFIG


def test_a_resolved_configuration_is_accepted_again(tmp_path):
    """What TOML makes of a configuration equals it: tuples, None and whole floats."""
    for i, typed in enumerate(({"method": "lora"}, {"target_modules": ("a", "b")}, {"lr": 1.0})):
        run = RunDir(tmp_path / str(i))
        for _ in range(2):
            run.begin(resolve({"task": "rte"} | typed).config, TASKS["rte"], overwrite=False)


def test_begin_after_a_kill_while_claiming(tmp_path):
    """The same command again must work: config.toml's temporary is ours, not somebody's file."""
    (tmp_path / ".config.toml.tmp").write_text('task = "rt')
    RunDir(tmp_path).begin(CONFIG, TASKS["rte"], overwrite=False)


def test_a_file_in_the_way_is_the_users_to_mend(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="runs"):
        RunDir(tmp_path / "runs" / "model" / "seed-1").begin(CONFIG, TASKS["rte"], overwrite=False)


# ---- reading


def test_open_wants_a_run(tmp_path):
    with pytest.raises(RunDirError, match="no such directory"):
        RunDir.open(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="no such directory"):
        RunDir.open(tmp_path / "file")
    with pytest.raises(RunDirError, match=r"not a run directory.*config\.toml"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is corrupt"),
        (b'{"step": 1, "loss": 0.', "is corrupt"),
        (b"\0" * 64, "is corrupt"),  # what a file system may leave after a power cut
        (b'{"name": "\xff\xfe"}', "is corrupt"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_read_json_refuses(tmp_path, content, message):
    run = RunDir(tmp_path)
    if content is not None:
        run.result.write_bytes(content)
    with pytest.raises(RunDirError, match=message) as caught:
        run.read_json(run.result)
    assert str(run.result) in str(caught.value)


def test_read_json_reads_what_was_written(tmp_path):
    run = RunDir(tmp_path)
    value = {"best": {"step": 3, "metrics": {"accuracy": 0.1 + 0.2}}, "name": "é\n", "none": None}
    write_json(run.result, value)
    assert run.read_json(run.result) == value


@pytest.mark.parametrize("content", [b"task = ", b"unknown = 1\n", b'task = "\xff"\n'])
def test_an_unreadable_configuration_is_the_users_to_mend(tmp_path, content, request):
    run = RunDir(tmp_path)
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(run.config))):
        run.read_config()


# ---- JSON Lines

LINES = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 20), "text": st.text(max_size=5)},
        optional={"loss": st.floats(allow_nan=False, allow_infinity=False)},
    ),
    max_size=8,
)


def lines_file(directory, lines):
    """A run's file written by append, in two calls as a resumed run would."""
    run = SimpleNamespace(metrics=directory / "metrics.jsonl")
    run.append = RunDir(directory).append
    run.cut = RunDir(directory).cut
    run.append(run.metrics, lines[: len(lines) // 2])
    run.append(run.metrics, lines[len(lines) // 2 :])
    return run


@settings(max_examples=60, deadline=None)
@given(lines=LINES)
def test_append_is_one_object_a_line(tmp_path_factory, lines):
    run = lines_file(tmp_path_factory.mktemp("run"), lines)
    found = run.metrics.read_bytes().split(b"\n")
    assert found.pop() == b""
    assert [json.loads(line) for line in found] == lines


@settings(max_examples=80, deadline=None)
@given(lines=LINES, at=st.integers(0, 21), torn=st.integers(0, 30), spaces=st.integers(0, 3))
def test_cut_keeps_the_rest_byte_for_byte(tmp_path_factory, lines, at, torn, spaces):
    run = lines_file(tmp_path_factory.mktemp("run"), lines)
    # a line formatted in its own way: cut must keep bytes, not rewrite what it understood
    own = b'{"loss":' + b" " * spaces + b'1e-3, "step": 0}\n'
    # a kill may leave any beginning of the last line, all but its end among them
    tail = b'{"step": 0, "text": "abc"}'[:torn]
    whole = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(own + b"".join(whole) + tail)
    run.cut(run.metrics, lambda line: line["step"] < at)
    wanted = [line for line in (own, *whole) if json.loads(line)["step"] < at]
    assert run.metrics.read_bytes() == b"".join(wanted)
    there = tree(run.metrics.parent)
    run.cut(run.metrics, lambda line: line["step"] < at)
    assert tree(run.metrics.parent) == there
    assert set(there) == {"metrics.jsonl"}


def test_cut_of_a_missing_file_makes_none(tmp_path):
    RunDir(tmp_path).cut(tmp_path / "metrics.jsonl", lambda line: True)
    assert tree(tmp_path) == {}


def test_append_after_a_cut_starts_a_line(tmp_path):
    run = lines_file(tmp_path, [{"step": 0}])
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 1')
    run.cut(run.metrics, lambda line: True)
    run.append(run.metrics, [{"step": 1}])
    assert [json.loads(x)["step"] for x in run.metrics.read_text().splitlines()] == [0, 1]


def test_append_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunDir(tmp_path).append(tmp_path / "metrics.jsonl", [{"loss": float("nan")}])


def test_file_names():
    """The layout that users and their scripts know."""
    run = RunDir(Path("run"))
    assert {name: path.name for name, path in vars(run).items() if name != "path"} == {
        "config": "config.toml",
        "task": "task.json",
        "environment": "environment.json",
        "metrics": "metrics.jsonl",
        "ranks_history": "ranks.jsonl",
        "result": "result.json",
        "ranks": "ranks.json",
        "adapter": "adapter",
        "model": "model",
        "posterior": "posterior.safetensors",
        "checkpoint": "checkpoint",
        "card": "README.md",
        "exports": "export",
    }


def test_a_result_without_its_records_is_corrupt(tmp_path):
    run = RunDir(tmp_path)
    write_json(run.result, {"best": {}})
    with pytest.raises(RunDirError, match=r"result\.json is corrupt: it has no best_at_budget"):
        run.read_result()


def test_files_are_as_readable_as_any(tmp_path):
    """safetensors makes its own readable by their owner alone."""
    (tmp_path / "any").write_text("")
    with replacing(tmp_path / "directory") as directory:
        directory.mkdir()
        (directory / "secretive").touch(mode=0o600)
    mode = (tmp_path / "directory" / "secretive").stat().st_mode
    assert mode == (tmp_path / "any").stat().st_mode
