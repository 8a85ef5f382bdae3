"""Run directories of unknown origin, with checksums that fit: one message and exit code 2."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.support.finished_runs import reseal
from tests.training.test_loop import run_of


@pytest.fixture(scope="module")
def run(backbone, rte, tmp_path_factory):
    """A finished run's directory."""
    return run_of(backbone, rte, tmp_path_factory.mktemp("runs"), max_steps=2).path


@pytest.fixture
def foreign(run, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(run, tmp_path / "run")


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("init_rank", 10**9, "--init-rank 1000000000: the largest layer to adapt is 32 wide"),
        ("target_rank", 10**9, "--target-rank 1000000000: must not"),
        ("model", "a\\u0000b", r"--model a\x00b: "),
        ("model", "~nouser/model", "no such directory"),
        ("model", LONG, "xxx…: the path is too long"),
        ("data", "a\\u0000b", r"--data a\x00b: no such directory"),
        ("data", "~nouser", "--data ~nouser"),
        ("data", LONG, "too long"),
        ("bit_ladder", "1000", "--bit-ladder 1000"),
        ("seed", 2**70, "--seed"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "export"])
def test_configurations(foreign, typed, command, key, value, message):
    config = foreign / "config.toml"
    line = f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
    text = re.sub(rf"(?m)^{key} = .*\n", "", config.read_text())
    config.write_text(f"{line}\n{text}")
    reseal(foreign)
    more = ["--format", "merged"] if command == "export" else ["--device", "cpu"]
    code, out, err = typed(command, foreign, *more)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["bleu"]}, "metric bleu: unknown; there are accuracy"),
        ({"metrics": "accuracy"}, "task.json is corrupt: metrics is 'accuracy'"),
        ({"objective": "os.system"}, "os.system"),
        ({"classes": ["a"]}, "other rows or labels"),
        ({"classes": ["a", "b", "c"]}, "other rows or labels"),
        ({"validation_splits": ["../x"]}, "../x"),
    ],
)
def test_tasks(foreign, typed, change, message):
    task = foreign / "task.json"
    task.write_text(json.dumps(json.loads(task.read_text()) | change))
    reseal(foreign)
    code, out, err = typed("eval", foreign, "--device", "cpu")
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert message in err
