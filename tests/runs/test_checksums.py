"""A finished run's files: whatever is changed in one of them, its readers say which."""

from __future__ import annotations

import json
import logging
import random

import pytest

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.runs.atomic_write import write_json, write_text
from bayeslora_cli.runs.checksums import parse_json
from bayeslora_cli.runs.directory import RunDir
from tests.support.finished_runs import make_old

RESULT = {"best": {}, "best_at_budget": {}, "last": {}, "steps": 1}
READ = ("task", "environment", "ranks", "result")


@pytest.fixture
def run(tmp_path):
    """A finished run of made-up files."""
    found = RunDir(tmp_path / "run")
    write_text(found.config, 'task = "rte"\n')
    write_json(found.task, {"a": 1})
    write_json(found.environment, {"checksums": "checksums.json"})
    write_json(found.ranks, {"b": [1, 2, 3]})
    write_text(found.posterior, "p" * 200)
    write_text(found.adapter / "adapter_model.safetensors", "q" * 100)
    write_text(found.adapter / "README.md", "a card")
    found.finish(RESULT)
    return RunDir(found.path)


def flip(path, generator):
    content = bytearray(path.read_bytes())
    at = generator.randrange(len(content))
    content[at] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def test_a_whole_run_is_read(run):
    run.verify()
    assert run.read_result() == RESULT
    for name in READ:
        run.read_json(getattr(run, name))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["config", *READ, "posterior"])
def test_a_flipped_bit_is_named(name, seed, run):
    path = getattr(run, name)
    flip(path, random.Random(seed))
    with pytest.raises(RunDirError, match=rf"{path.name} is corrupt"):
        run.verify(path)
    with pytest.raises(RunDirError, match=rf"{path.name} is corrupt"):
        RunDir(run.path).verify()
    if name in READ:
        with pytest.raises(RunDirError, match=rf"{path.name} is corrupt"):
            RunDir(run.path).read_json(path)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_of_the_checksums_is_named(seed, run):
    flip(run.checksums, random.Random(seed))
    with pytest.raises(RunDirError, match=r"checksums\.json is corrupt"):
        run.verify()


def test_files_of_a_directory(run):
    (run.adapter / "README.md").write_text("edited by hand")
    run.verify()
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(RunDirError, match=r"adapter_model\.safetensors is missing"):
        run.verify()


def test_a_file_put_there_by_others(run):
    (run.path / "ranks.jsonl").write_text("{}\n")
    with pytest.raises(RunDirError, match=r"ranks\.jsonl is corrupt: the run has written no such"):
        run.read_text(run.ranks_history)


def test_missing_checksums(run, caplog):
    run.checksums.unlink()
    with pytest.raises(RunDirError, match=r"checksums\.json is missing"):
        RunDir(run.path).read_result()
    write_json(run.checksums, {})
    make_old(run.path)
    old = RunDir(run.path)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        assert old.read_result() == RESULT
        old.read_json(old.task)
        RunDir(run.path).read_result()
    (said,) = caplog.records
    assert "before runs had checksums" in said.message


def test_a_run_that_goes_on_is_not_checked(run):
    run.checksums.unlink()
    run.result.unlink()
    assert run.read_json(run.task) == {"a": 1}


def test_a_key_that_stands_twice():
    with pytest.raises(ValueError, match="'b' stands twice"):
        parse_json(b'{"a": {"b": 1, "c": 2, "b": 1}}')


@pytest.mark.parametrize(
    ("name", "value"),
    [("accuracy", 57.3), ("accuracy", -0.1), ("matthews", -1.5), ("brier", 2.1), ("f1", None),
     ("ece", "0.1"), ("pearson", float("nan")), ("macro_f1", True)],
)  # fmt: skip
def test_values_outside_a_metrics_range(name, value, tmp_path):
    run = RunDir(tmp_path)
    record = {"metrics": {"validation": {name: value}}, "value": 0.5}
    for at in ("best", "best_at_budget", "last"):
        run.result.write_text(json.dumps(RESULT | {"selecting": "accuracy", at: record}))
        with pytest.raises(RunDirError, match=rf"result\.json is corrupt: {at} {name} is"):
            run.read_result()


def test_a_value_outside_its_metrics_range(tmp_path):
    run = RunDir(tmp_path)
    record = {"metrics": {"validation": {"accuracy": 0.573, "nll": 57.3}}, "value": 57.3}
    run.result.write_text(json.dumps(RESULT | {"selecting": "accuracy", "last": record}))
    with pytest.raises(RunDirError, match=r"last accuracy is 57\.3, not from 0 to 1"):
        run.read_result()
    run.result.write_text(
        json.dumps(RESULT | {"selecting": "accuracy", "last": record | {"value": 0.573}})
    )
    run.read_result()
