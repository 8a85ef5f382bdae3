"""Run directories: claims, links, and what is read back."""

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

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import RunConfig, flag
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.sources.glue import TASKS
from tests.support.trees import put, tree

CONFIG = RunConfig()


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
    "gradient_checkpointing": True, "deterministic": True, "checkpoint_every": "3",
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
        named = changed - ({"epochs"} if "max_steps" in changed else set())  # these say how far
        for name in named:
            assert f"{flag(name)} {getattr(CONFIG, name)} there, {OTHERS[name]} now" in message
        assert message.count(" there, ") == len(named)
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


def test_a_run_of_a_version_with_other_defaults_of_what_has_no_effect(tmp_path):
    """Defaults that the method does not read may change without a run being lost."""
    run = RunDir(tmp_path / "run")
    run.begin(replace(CONFIG, lambda_quant=3.0, gate_lr=2.0), TASKS["rte"], overwrite=False)
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    lora = replace(CONFIG, method="lora", criterion=None, orth_reg=0.0, init_rank=2)
    with pytest.raises(RunDirError, match="--method adalora there, lora now; ") as refused:
        run.begin(lora, TASKS["rte"], overwrite=False)
    assert "--orth-reg" not in str(refused.value)


def test_begin_after_a_kill_while_claiming(tmp_path):
    """The same command again must work: these are ours, not somebody's files."""
    (tmp_path / ".config.toml.tmp").write_text('task = "rt')
    (tmp_path / ".lock").write_text("process 1")
    RunDir(tmp_path).begin(CONFIG, TASKS["rte"], overwrite=False)
    assert set(tree(tmp_path)) == {".lock", "config.toml", "task.json"}


# ---- overwriting, stopped and run again


def test_overwrite_resumes_what_it_has_begun_itself(tmp_path):
    """The same command again: a job that is requeued must not start over each time."""
    run, config = RunDir(tmp_path / "run"), replace(CONFIG, overwrite=True)
    run.begin(config, TASKS["rte"], overwrite=True)
    put(run.checkpoint, "directory", "state")
    run.begin(config, TASKS["rte"], overwrite=True)
    assert run.checkpoint.is_dir()
    # other settings, or a finished run, are another matter
    run.begin(replace(config, lr=0.5), TASKS["rte"], overwrite=True)
    assert not run.checkpoint.exists()
    assert run.read_config().lr == 0.5
    put(run.checkpoint, "directory", "state")
    write_json(run.result, {})
    run.begin(replace(config, lr=0.5), TASKS["rte"], overwrite=True)
    assert set(tree(run.path)) == {"config.toml", "task.json"}


def test_overwrite_replaces_what_was_begun_without(tmp_path):
    run = RunDir(tmp_path / "run")
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    put(run.checkpoint, "directory", "state")
    run.begin(replace(CONFIG, overwrite=True), TASKS["rte"], overwrite=True)
    assert set(tree(run.path)) == {"config.toml", "task.json"}


def test_overwrite_of_an_unreadable_configuration(tmp_path):
    run = RunDir(tmp_path / "run")
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    run.config.write_bytes(b"\xff\0")
    run.begin(replace(CONFIG, overwrite=True), TASKS["rte"], overwrite=True)
    assert run.read_config() == replace(CONFIG, overwrite=True)


@pytest.mark.parametrize("at", range(1, 9))
def test_overwrite_killed_while_it_clears(tmp_path, monkeypatch, at):
    """What is left is no finished run, or still the old one; and the same command works on it."""
    run, config = RunDir(tmp_path / "run"), replace(CONFIG, overwrite=True)
    run.begin(config, TASKS["rte"], overwrite=True)
    put(run.adapter, "directory", "weights")
    put(run.checkpoint, "directory", "state")
    write_json(run.result, {})
    removals = 0

    def killed(call):
        def remove(*arguments, **keywords):
            nonlocal removals
            removals += 1
            if removals == at:
                raise KeyboardInterrupt
            return call(*arguments, **keywords)

        return remove

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, killed(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            run.begin(config, TASKS["rte"], overwrite=True)
    assert not run.finished or run.adapter.is_dir()
    run.begin(config, TASKS["rte"], overwrite=True)
    assert run.read_config() == config
    assert not run.finished
    assert not list(run.checkpoint.rglob("state"))


# ---- links


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint", "posterior.safetensors", "export"])
def test_a_run_from_elsewhere_does_not_choose_our_files(tmp_path, name):
    run = RunDir(tmp_path / "run")
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    (tmp_path / "precious").write_text("")
    (run.path / name).symlink_to(tmp_path / "precious")
    for use in (lambda: RunDir.open(run.path), lambda: run.check(CONFIG)):
        with pytest.raises(RunDirError, match=f"{name} is a link that leaves"):
            use()


def test_a_linked_run_directory_is_fine(tmp_path):
    run = RunDir(tmp_path / "run")
    run.begin(CONFIG, TASKS["rte"], overwrite=False)
    (tmp_path / "link").symlink_to(run.path)
    assert RunDir.open(tmp_path / "link").read_config() == CONFIG


def test_no_file_allows_code(tmp_path):
    run = RunDir(tmp_path / "run")
    run.begin(replace(CONFIG, trust_remote_code=True), TASKS["rte"], overwrite=False)
    assert not run.read_config().trust_remote_code
    assert run.read_config(trust_remote_code=True).trust_remote_code


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


def test_append_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunDir(tmp_path).append(tmp_path / "metrics.jsonl", [{"loss": float("nan")}])


def test_file_names():
    """The layout that users and their scripts know."""
    run = RunDir(Path("run"))
    assert {name: path.name for name, path in run.paths().items()} == {
        "lock": ".lock",
        "config": "config.toml",
        "task": "task.json",
        "environment": "environment.json",
        "trackers": "trackers.json",
        "tensorboard": "tensorboard",
        "metrics": "metrics.jsonl",
        "ranks_history": "ranks.jsonl",
        "result": "result.json",
        "checksums": "checksums.json",
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
