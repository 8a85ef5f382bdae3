"""Trackers: TensorBoard's own files, the others by what their libraries are called with."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ConfigError, Preempted, UserError
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.trackers import OPENERS, Trackers, check_trackers
from bayeslora_cli.training.loop import train


@pytest.fixture
def options(backbone, rte, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where libraries put what they are not told where to put
    return {
        "task": "rte", "data": rte, "model": backbone("bert"), "output": str(tmp_path / "runs"),
        "max_steps": 6, "batch_size": 16, "device": "cpu", "log_every": 2,
        "target_modules": ("query",),
    }  # fmt: skip


class After(Stop):
    """Somebody who asks to stop after a number of steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def check(self):
        if self.noting:
            self.steps -= 1
            if self.steps == 0:
                self.signal = signal.SIGTERM
        super().check()


class Fake:
    """A tracker that remembers; `fail` names the calls that raise."""

    def __init__(self, beginning=None, fail=()):
        self.beginning, self.fail, self.told, self.closed = beginning, fail, [], []
        self.id = beginning.id
        self.may("open")

    def may(self, what):
        if what in self.fail:
            raise RuntimeError(f"no {what}\nsecond line")

    def log(self, step, values):
        self.may("log")
        print("a library's own words")
        self.told.append((step, values))

    def close(self, *, finished):
        self.may("close")
        self.closed.append(finished)


@pytest.fixture
def fakes(monkeypatch):
    """In the place of the libraries: the fakes that were opened; `fakes.fail` as for `Fake`."""

    class Opened(list):
        fail: tuple[str, ...] = ()

    opened = Opened()

    def opening(beginning):
        opened.append(Fake(beginning, opened.fail))
        return opened[-1]

    monkeypatch.setitem(OPENERS, "wandb", opening)
    monkeypatch.setattr("bayeslora_cli.runs.trackers.check_trackers", lambda names: None)
    monkeypatch.setattr("bayeslora_cli.training.preparation.check_trackers", lambda names: None)
    return opened


# ---- what any of them is told


def test_it_is_told_what_metrics_jsonl_has(options, fakes, capsys):
    run = train(resolve({**options, "log_to": ("wandb",)}))
    (fake,) = fakes
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert len(fake.told) == len(lines) + 1
    for line, (step, values) in zip(lines, fake.told, strict=False):
        assert step == line["step"]
        if "metrics" in line:
            found = {f"validation/{n}": v for n, v in line["metrics"]["validation"].items()}
        else:
            found = {f"train/{n}": v for n, v in line.items() if n not in ("step", "epoch")}
        assert values == found | {"epoch": line["epoch"]}
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert fake.told[-1] == (5, {f"best_at_budget/validation/{n}": v for n, v in best.items()})
    assert fake.closed == [True]
    assert not fake.beginning.resumed
    out, err = capsys.readouterr()
    assert out == ""
    assert "a library's own words" in err


def test_it_changes_nothing_else(options, fakes, tmp_path):
    from tests.support.faults import contents

    with_it = contents(train(resolve({**options, "log_to": ("wandb",)})).path)
    without = contents(train(resolve({**options, "output": str(tmp_path / "b")})).path)
    with_it.pop("trackers.json")
    with_it["config.toml"] = with_it["config.toml"].replace('log_to = [\n    "wandb",\n]\n', "")
    assert with_it == without


def test_a_resumed_run_goes_on_in_the_same_one(options, fakes):
    resolved = resolve({**options, "log_to": ("wandb",)})
    with pytest.raises(Preempted):
        train(resolved, stop=After(3))
    run = train(resolved)
    first, second = fakes
    assert (first.closed, second.closed) == ([False], [True])
    assert second.beginning.id == first.beginning.id
    assert second.beginning.resumed
    assert second.beginning.step == 3
    told = {step: values for fake in fakes for step, values in fake.told}
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert told.keys() == {line["step"] for line in logged} == {1, 3, 5}
    # another run in its place is another run there
    train(resolve({**options, "log_to": ("wandb",), "overwrite": True}))
    assert not fakes[2].beginning.resumed
    assert fakes[2].beginning.id != first.beginning.id


@pytest.mark.parametrize("what", ["open", "log", "close"])
def test_a_failure_is_said_once_and_stops_nothing(options, fakes, caplog, what):
    fakes.fail = (what,)
    run = train(resolve({**options, "log_to": ("wandb",)}))
    assert run.finished
    found = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert found == [
        f"--log-to wandb: no {what}; it is no longer used, metrics.jsonl has everything"
    ]


def test_a_broken_note_of_them_stops_nothing(options, fakes, caplog):
    resolved = resolve({**options, "log_to": ("wandb",)})
    with pytest.raises(Preempted):
        train(resolved, stop=After(2))
    RunDir(fakes[0].beginning.run.path).trackers.write_text("{")
    assert train(resolved).finished
    assert "trackers.json is corrupt" in caplog.text
    assert not fakes[1].beginning.resumed


def test_none_is_the_default(options, fakes):
    run = train(resolve(options))
    assert fakes == []
    assert not run.trackers.exists()


# ---- options


def test_names_are_checked():
    with pytest.raises(ConfigError, match=r"--log-to wandbb: choose of .*\(did you mean wandb\?\)"):
        resolve({"task": "rte", "log_to": ("wandbb",)})
    assert RunConfig(log_to=("mlflow", "wandb")).log_to == ("mlflow", "wandb")


def test_a_missing_library_is_said_before_anything_begins(options, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name)
    )
    with pytest.raises(UserError, match=r"--log-to trackio: .*pip install 'bayeslora\[trackio\]'"):
        train(resolve({**options, "log_to": ("trackio",)}))
    assert not (tmp_path / "runs").exists()
    check_trackers(())


# ---- TensorBoard, the real one


def events(run):
    """Scalars as TensorBoard reads them: name -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.tensorboard), purge_orphaned_data=True)
    found.Reload()
    scalars = {name: found.Scalars(name) for name in found.Tags()["scalars"]}
    return {name: [(e.step, e.value) for e in es] for name, es in scalars.items()}, found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(options):
    """Its files hold what metrics.jsonl holds, each step once, a resumed run included."""
    resolved = resolve({**options, "log_to": ("tensorboard",)})
    with pytest.raises(Preempted):
        train(resolved, stop=After(3))
    run = train(resolved)
    found, files = events(run)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert found["train/loss"] == [(s, pytest.approx(v)) for s, v in losses]
    accuracy = [
        (x["step"], x["metrics"]["validation"]["accuracy"]) for x in lines if "metrics" in x
    ]
    assert found["validation/accuracy"] == [(s, pytest.approx(v)) for s, v in accuracy]
    assert "best_at_budget/validation/accuracy" in found
    assert files.Tags()["tensors"] == ["config/text_summary"]


# ---- the others: the calls


def library(monkeypatch, name, **contents):
    """A module of that name in the place of the real one."""
    made = ModuleType(name)
    made.__spec__ = SimpleNamespace(name=name)
    for key, value in contents.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Calls(list):
    """Remembers what it is called with, by any method."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments, **keywords):
            self.append((name, arguments, keywords))
            return SimpleNamespace(info=SimpleNamespace(run_id="its-own"), experiment_id="7")

        return call


@pytest.fixture
def two_processes(tmp_path):
    """Run one tracker twice over a run directory: the second time resumed at step 4."""

    def run_it(name):
        run = RunDir(tmp_path / "rte-x" / "seed-1")
        run.path.mkdir(parents=True)
        config = RunConfig(log_to=(name,))
        for step, error in ((0, RuntimeError), (4, None)):
            try:
                with Trackers(run, config) as trackers:
                    trackers.start(step)
                    trackers.log({"step": step, "loss": 0.5, "epoch": 1.0})
                    if error is not None:
                        raise error
            except RuntimeError:
                pass
        return json.loads(run.trackers.read_text())[name]

    return run_it


@pytest.mark.parametrize("project", [None, "mine"])
def test_wandb(monkeypatch, two_processes, project, caplog):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if project:
        monkeypatch.setenv("WANDB_PROJECT", project)
    calls, begun = Calls(), []

    def init(**keywords):
        begun.append(keywords)
        return calls

    library(monkeypatch, "wandb", init=init, Settings=dict)
    its_id = two_processes("wandb")
    assert [b["id"] for b in begun] == [its_id] * 2
    assert {b["project"] for b in begun} == {project or "bayeslora"}
    assert {b["resume"] for b in begun} == {"allow"}
    assert {b["name"] for b in begun} == {"rte-x/seed-1"}
    assert "mode" not in begun[0]  # WANDB_MODE says it
    assert begun[0]["config"]["criterion"] == "snr"
    values = {"train/loss": 0.5, "epoch": 1.0}
    assert list(calls) == [
        ("log", (values,), {"step": 0}), ("finish", (), {"exit_code": 1}),
        ("log", (values,), {"step": 4}), ("finish", (), {"exit_code": 0}),
    ]  # fmt: skip
    assert caplog.text == ""


def test_mlflow(monkeypatch, two_processes, caplog):
    calls = Calls()
    mlflow = library(monkeypatch, "mlflow", MlflowClient=lambda: calls)
    mlflow.set_experiment = calls.set_experiment
    library(monkeypatch, "mlflow.entities", Metric=lambda *a: a, Param=lambda *a: a)
    assert two_processes("mlflow") == "its-own"
    assert [name for name, *_ in calls] == [
        "set_experiment", "create_run", "log_batch", "log_batch", "set_terminated",
        "update_run", "log_batch", "set_terminated",
    ]  # fmt: skip
    assert calls[1][1:] == (("7",), {"run_name": "rte-x/seed-1"})
    assert ("criterion", "snr") in calls[2][2]["params"]
    metrics = [call[2]["metrics"] for call in (calls[3], calls[6])]
    assert [[m[:2] + m[3:] for m in found] for found in metrics] == [
        [("train/loss", 0.5, step), ("epoch", 1.0, step)] for step in (0, 4)
    ]
    assert calls[5][1:] == (("its-own",), {"status": "RUNNING"})
    statuses = [call[2]["status"] for call in calls if call[0] == "set_terminated"]
    assert statuses == ["KILLED", "FINISHED"]
    assert caplog.text == ""


def test_trackio(monkeypatch, two_processes, caplog):
    calls, begun = Calls(), []

    def init(**keywords):
        begun.append(keywords)
        return calls

    library(monkeypatch, "trackio", init=init, finish=calls.finish)
    its_id = two_processes("trackio")
    assert [b["name"] for b in begun] == [f"rte-x/seed-1-{its_id[:8]}"] * 2
    assert {b["resume"] for b in begun} == {"allow"}
    assert [name for name, *_ in calls] == ["log", "finish"] * 2
    assert caplog.text == ""
