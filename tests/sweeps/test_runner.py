"""Sweeps from outside: what is trained, skipped, printed and returned."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from bayeslora_cli.errors import NonFiniteError, Preempted
from bayeslora_cli.models.backbones import identity
from bayeslora_cli.sweeps import worker_pool
from bayeslora_cli.training import loop
from tests.support.faults import contents


@pytest.fixture
def options(backbone, rte):
    return [
        "train", "--task", "rte", "--data", rte, "--model", backbone("bert", dropout=0.1),
        "--max-steps", 4, "--batch-size", 8, "--device", "cpu", "--target-modules", "query,value",
    ]  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """Seeds as they are trained; those in `trained.fail` fail as told."""

    class Trained(list):
        def __init__(self):
            self.fail = {}

    seen, real = Trained(), loop.train

    def train(resolved, progress, stop, workspace=None, processes=None):
        seed = resolved.config.seed
        seen.append(seed)
        if seed in seen.fail:
            raise seen.fail[seed]
        return real(resolved, progress, stop, workspace)

    monkeypatch.setattr(loop, "train", train)
    return seen


def test_runs_of_one_process_are_those_of_several(typed, options, tmp_path):
    """To the bit, whatever ran before in the same process."""
    lists = ["--method", "adalora,lora", "--criterion", "snr,magnitude", "--seeds", "1-2"]
    code, out, err = typed(*options, *lists, "--output", tmp_path / "a")
    assert code == 0, err
    table, _, paths = out.strip().split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        "lora-adamw-r2", "adalora-ivon-snr-r2", "adalora-ivon-magnitude-r2",
    ]  # fmt: skip
    runs = [Path(line) for line in paths.splitlines()]
    assert len(runs) == 6
    assert "run 6 of 6: rte-lora-adamw-r2-" in err

    _, out, _ = typed(*options, *lists, "--output", tmp_path / "b", "--print-commands")
    commands = [shlex.split(line)[1:] for line in out.splitlines()]
    assert len(commands) == 6
    for run, command in zip(runs, reversed(commands), strict=True):  # in another order
        _, out, _ = typed(*command)
        alone = Path(out.splitlines()[-1])
        same = tmp_path / "a" / alone.relative_to(tmp_path / "b")
        assert contents(same) == contents(alone)
        assert run in runs


def test_what_is_done_is_skipped_and_what_fails_keeps_nobody_back(
    typed, options, tmp_path, trained
):
    options += ["--output", tmp_path]
    assert typed(*options, "--seeds", "2")[0] == 0
    trained.clear()
    trained.fail = {1: NonFiniteError("step 3: it diverged"), 4: RuntimeError("a bug")}
    code, out, err = typed(*options, "--seeds", "1-5")
    assert code == 1
    assert trained == [1, 3, 4, 5]
    paths = out.strip().split("\n\n")[-1]
    assert [line[-6:] for line in paths.splitlines()] == ["seed-2", "seed-3", "seed-5"]
    assert "1 of 5 runs are done already" in err
    last = err[err.rindex("error: ") :].splitlines()
    assert last[0] == "error: 2 of 5 runs failed"
    assert last[1].endswith("/seed-1: step 3: it diverged")
    assert last[2].endswith("/seed-4: RuntimeError: a bug")
    assert "Traceback" in err  # a bug's, among the lines before

    trained.clear()
    trained.fail = {}
    code, out, err = typed(*options, "--seeds", "1-5", "--json")
    assert code == 0, err
    assert trained == [1, 4]
    found = json.loads(out)
    assert [Path(run["run"]).name for run in found] == [f"seed-{seed}" for seed in range(1, 6)]
    assert all("best_at_budget" in run for run in found)


def test_one_cause_of_several_failures_is_said_once_at_the_end(typed, options, tmp_path, trained):
    cause = "step 3: it diverged"
    trained.fail = {1: NonFiniteError(cause), 2: NonFiniteError("else"), 3: NonFiniteError(cause)}
    _, _, err = typed(*options, "--output", tmp_path, "--seeds", "1-3")
    first, *last = err[err.rindex("error: ") :].splitlines()
    assert first == "error: 3 of 3 runs failed"
    assert [line.split("/")[-1] for line in last] == [f"seed-3: {cause}", "seed-2: else"]
    assert "/seed-1, " in last[0]


def test_a_finished_run_that_is_corrupt_is_one_of_the_failures(typed, options, tmp_path):
    options += ["--output", tmp_path]
    assert typed(*options, "--seeds", "1-2")[0] == 0
    (corrupt,) = tmp_path.rglob("seed-2/result.json")
    corrupt.write_text("{")
    code, out, err = typed(*options, "--seeds", "1-3")
    assert code == 1
    paths = out.strip().split("\n\n")[-1]
    assert [line[-6:] for line in paths.splitlines()] == ["seed-1", "seed-3"]
    assert "error: 1 of 3 runs failed" in err
    assert "result.json is corrupt: " in err
    assert "remove the run, or put the file back" in err
    good, other, bad = json.loads(typed(*options, "--seeds", "1-3", "--json")[1])
    assert good["steps"] == other["steps"] == 4
    assert "corrupt" in bad["error"]


def test_failures_in_json(typed, options, tmp_path, trained):
    trained.fail = {1: NonFiniteError("it diverged")}
    code, out, _ = typed(*options, "--output", tmp_path, "--seeds", "1,2", "--json")
    assert code == 1
    good, bad = json.loads(out)
    assert good["steps"] == 4
    assert bad == {"run": str(Path(good["run"]).with_name("seed-1")), "error": "it diverged"}


def test_a_stop_stops_the_sweep(typed, options, tmp_path, trained):
    trained.fail = {2: Preempted("stopped by SIGTERM")}
    code, out, err = typed(*options, "--output", tmp_path, "--seeds", "1-3")
    assert (code, out) == (75, "")
    assert trained == [1, 2]
    assert err.endswith("stopped by SIGTERM\n")


def test_one_run_is_the_ordinary_run(typed, options, tmp_path, trained):
    """Its table, its path, one JSON object."""
    options += ["--output", tmp_path]
    code, out, _ = typed(*options, "--seeds", "5", "--jobs", 3)
    assert code == 0
    assert "best_at_budget" in out
    assert out.splitlines()[-1].endswith("seed-5")
    assert isinstance(json.loads(typed(*options, "--seed", "5", "--json")[1]), dict)
    trained.fail = {1: NonFiniteError("it diverged")}
    assert typed(*options, "--seeds", "1")[::2] == (1, "error: it diverged\n")


def test_jobs_of_real_trainings(typed, options, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # where `-m bayeslora_cli` is found
    code, out, err = typed(*options, "--output", tmp_path / "a", "--seeds", "1-2", "--jobs", 2)
    assert code == 0, err
    runs = [Path(line) for line in out.strip().split("\n\n")[-1].splitlines()]
    _, alone, _ = typed(*options, "--output", tmp_path / "b", "--seed", 2)
    assert contents(runs[1]) == contents(Path(alone.splitlines()[-1]))
    assert (runs[0].parent / "seed-1.log").read_text().splitlines()[-1] == str(runs[0])
    assert "seed-2 is done, " in err


def test_plans_of_a_sweep(typed, options, tmp_path):
    code, out, _ = typed(*options, "--output", tmp_path, "--seeds", "1-2", "--dry-run", "--json")
    assert code == 0
    assert [plan["run"][-6:] for plan in json.loads(out)] == ["seed-1", "seed-2"]
    _, out, _ = typed(*options, "--output", tmp_path, "--seeds", "1-2", "--dry-run")
    assert out.count("Nothing was trained.") == 2
    assert not list(tmp_path.iterdir())


# ---- model and data that have moved or changed


@pytest.fixture
def project(options, rte, backbone, tmp_path):
    """Options of runs whose model and data lie in a directory, which may be moved."""

    def arguments(place):
        moved = list(options)
        for name in ("--data", "--model"):
            moved[moved.index(name) + 1] = tmp_path / place / name.strip("-")
        return [*moved, "--output", tmp_path / "runs"]

    shutil.copytree(rte, tmp_path / "old" / "data")
    shutil.copytree(backbone("bert", dropout=0.1), tmp_path / "old" / "model")
    return arguments


def paths_of(out):
    return out.strip().split("\n\n")[-1].splitlines()


def test_a_sweep_of_a_moved_project(typed, project, trained, killed_at, tmp_path, monkeypatch):
    """One run is done, one was killed, two are not begun."""
    assert typed(*project("old"), "--seed", 1)[0] == 0
    with killed_at(2):
        typed(*project("old"), "--seed", 2, "--checkpoint-every", 1)
    group = {run.parent for run in (tmp_path / "runs").glob("*/*/seed-*")}
    assert len(group) == 1
    shutil.move(tmp_path / "old", tmp_path / "new")
    _, out, err = typed(*project("new"), "--seeds", "1-2", "--dry-run", "--json")
    assert {Path(plan["run"]).parent for plan in json.loads(out)} == group
    given = []
    monkeypatch.setattr(worker_pool, "run_jobs", lambda runs, *_: given.extend(runs) or {})
    assert typed(*project("new"), "--seeds", "1-3", "--jobs", 2)[0] == 1  # none was trained
    assert [run.label for run in given] == [f"{next(iter(group)).name}/seed-2", given[1].label]
    trained.clear()
    code, out, err = typed(*project("new"), "--seeds", "1-3")
    assert code == 0, err
    assert trained == [2, 3]
    assert "1 of 3 runs are done already" in err
    assert "resuming after step" in err
    assert [Path(path).name for path in paths_of(out)] == ["seed-1", "seed-2", "seed-3"]
    assert [Path(path).parent in group for path in paths_of(out)] == [True, True, False]
    trained.clear()
    assert typed(*project("new"), "--seeds", "1-3")[0] == 0
    assert trained == []


def test_a_sweep_whose_model_or_data_have_changed(typed, project, tmp_path, monkeypatch):
    """Its finished runs are no longer those that are asked for; the weights are hashed once."""
    monkeypatch.setenv("BAYESLORA_CACHE", "")
    hashed, original = [], identity._hashed
    monkeypatch.setattr(identity, "_hashed", lambda path: hashed.append(path) or original(path))

    def count():
        found = [path for path in hashed if path.suffix == ".safetensors"]
        hashed.clear()
        return len(found)

    assert typed(*project("old"), "--seeds", "1-2")[0] == 0
    assert count() == 1
    file = tmp_path / "old" / "model" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    code, out, err = typed(*project("old"), "--seeds", "1-2")
    assert (code, out) == (1, "")
    assert "error: 2 of 2 runs failed" in err
    assert err[err.rindex("error: ") :].count("model its weights are others now. Put the old") == 2
    assert "done already" not in err
    assert count() == 1
    file.write_bytes(whole)
    table = tmp_path / "old" / "data" / "RTE" / "train.tsv"
    table.write_text(table.read_text().replace("w1 ", "w2 ", 1))
    code, _, err = typed(*project("old"), "--seeds", "1-2")
    assert code == 1
    assert err[err.rindex("error: ") :].count("the rows or labels of its data are others now") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1-2", "--seed", 3], "--seed 3: not together with --seeds 1-2"),
        (["--seeds", "x"], "--seeds x: give whole numbers"),
        (["--seeds", "1-2", "--jobs", 0], "--jobs 0: must be at least 1"),
        (["--seeds", "1-2", "--lr", -1], "--lr -1.0: must be positive"),
        (["--seeds", "1-2", "--data", "no-such"], "--data no-such: no such directory"),
    ],
)
def test_what_a_user_can_mend_is_said_once(typed, options, tmp_path, arguments, message):
    code, out, err = typed(*options, "--output", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count(message) == 1
    assert not list(tmp_path.iterdir())
