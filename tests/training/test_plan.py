"""What `train --dry-run` says, against the run that follows."""

from __future__ import annotations

import json

import pytest

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import OPTIONS, flag
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.plan import describe_plan, dry_run
from bayeslora_cli.training.preparation import prepare
from tests.training.test_step import METHODS


@pytest.fixture
def resolved(backbone, rte, tmp_path):
    def make(**changes):
        typed = {
            "task": "rte", "data": rte, "model": backbone("bert"), "output": str(tmp_path),
            "max_steps": 13, "batch_size": 16, "max_length": 16, "device": "cpu",
        } | changes  # fmt: skip
        return resolve({k: v for k, v in typed.items() if v is not None})

    return make


@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_a_plan_is_what_happens(method, optimizer, criterion, resolved):
    asked = resolved(method=method, optimizer=optimizer, criterion=criterion)
    found = dry_run(prepare(asked), asked)
    json.dumps(found, allow_nan=False)
    run = train(asked)
    assert str(run.path) == found["run"]
    result = run.read_json(run.result)
    assert found["steps"] == result["steps"]
    assert found["parameters"]["trained_at_first"] == result["trainable_parameters"]
    assert [m["name"] for m in found["matrices"]] == list(result["ranks"])
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    rates = {line["step"]: (line["lr"], line.get("budget")) for line in logged if "lr" in line}
    met = [p for p in found["schedule"] if p["step"] in rates]
    assert met
    for point in met:
        assert (point["lr"], point.get("budget")) == rates[point["step"]]
    if method == "adalora":
        assert found["schedule"][-1]["budget"] == sum(result["ranks"].values())
    assert run.read_config().lr == found["config"]["--lr"]["value"]


def test_parameters_at_the_end_are_those_of_an_even_allocation(resolved):
    found = dry_run(prepare(resolved()), resolved())
    lost = sum(m["in"] + m["out"] + 1 for m in found["matrices"])
    parameters = found["parameters"]
    assert parameters["trained_at_the_end"] == parameters["trained_at_first"] - lost


def test_every_option_is_there_with_its_source(resolved):
    asked = resolved(lr=0.5)
    found = dry_run(prepare(asked), asked)["config"]
    assert list(found) == [flag(name) for name in OPTIONS]
    assert found["--lr"] == {"value": 0.5, "source": "command line"}
    assert found["--t-init"] == {"value": 2, "source": "preset rte, scaled"}
    assert found["--hess-init"] == {"value": 1.0, "source": "default"}


@pytest.mark.parametrize("method", ["adalora", "lora", "full"])
def test_a_plan_reads_in_80_columns(method, resolved):
    text = describe_plan(dry_run(prepare(resolved(method=method)), resolved(method=method)))
    assert text.isprintable() or set(text) - {"\n"} == set(text.replace("\n", ""))
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if "--model" not in line and "--data" not in line]
    assert ("rank budget" in text) == (method == "adalora")
    body = lines[lines.index("Data") : -1]
    assert max(map(len, body)) <= 80


def test_nothing_is_written(resolved, tmp_path):
    asked = resolved()
    dry_run(prepare(asked), asked)
    assert not list(tmp_path.iterdir())


def test_the_phases_of_gates(resolved):
    """Of all steps, each in one of them, as the schedule has them."""
    asked = resolved(method="blora", optimizer="adamw", criterion=None, t_init=3, t_final=4)
    found = dry_run(prepare(asked), asked)
    assert found["phases"] == [
        {"phase": "float", "first": 0, "last": 2},
        {"phase": "learning", "first": 3, "last": 8},
        {"phase": "fixed", "first": 9, "last": 12},
    ]
    assert found["parameters"]["trained_at_the_end"] is None
    text = describe_plan(found)
    assert "  learning  steps 4 to 9 " in text
    assert "trained at the end" not in text
    assert max(len(line) for line in text[text.index("Phases") :].splitlines()[:-1]) <= 80
    asked = resolved(method="blora", optimizer="adamw", criterion=None, t_init=0, t_final=4)
    assert [p["phase"] for p in dry_run(prepare(asked), asked)["phases"]] == ["learning", "fixed"]
