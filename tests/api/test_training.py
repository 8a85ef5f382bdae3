"""`bl.train` and `bl.plan`."""

from __future__ import annotations

import inspect

import pytest

import bayeslora_cli as bl
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.training.run_log import Reporter


def options(backbone, rte, output, **changes):
    return {
        "task": "rte", "data": rte, "model": backbone("bert"), "output": output,
        "device": "cpu", "batch_size": 16, "eval_batch_size": 32, "max_length": 24, "max_steps": 4,
        "target_modules": ["query", "dense"], **changes,
    }  # fmt: skip


class Steps(Reporter):
    def __init__(self):
        self.done = []

    def step(self, done):
        self.done.append(done)


def test_a_run_is_trained_and_then_only_returned(backbone, rte, tmp_path):
    first, again = Steps(), Steps()
    run = bl.train(**options(backbone, rte, tmp_path, criterion="snr"), reporter=first)
    assert isinstance(run, bl.Run)
    assert run.path.is_relative_to(tmp_path)
    assert first.done == [1, 2, 3, 4]
    same = bl.train(**options(backbone, rte, str(tmp_path), criterion="snr"), reporter=again)
    assert same.path == run.path
    assert again.done == []


def test_runs_that_differ_in_the_seed_share_a_workspace(backbone, rte, tmp_path):
    kept = bl.workspace()
    runs = [
        bl.train(**options(backbone, rte, tmp_path / "a"), seed=seed, workspace=kept)
        for seed in (1, 2)
    ]
    assert kept.setup is not None
    alone = bl.train(**options(backbone, rte, tmp_path / "b"), seed=2)
    assert runs[1].result["last"] == alone.result["last"]
    assert runs[1].ranks == alone.ranks


def test_a_preset_is_a_file_or_a_name(backbone, rte, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("lr = 0.25\n")
    plan = bl.plan(**options(backbone, rte, tmp_path), preset=file)
    assert plan.config.lr == 0.25
    assert bl.plan(preset="rte", **options(backbone, rte, tmp_path)).config.lr != 0.25


def test_a_plan_is_what_is_then_trained(backbone, rte, tmp_path):
    plan = bl.plan(**options(backbone, rte, tmp_path))
    assert not plan.path.exists()
    assert plan.config.total_steps == 4
    assert plan.config.criterion == "snr"
    assert set(plan.memory) == {"weights", "trained_and_optimizer", "activations"}
    assert plan.memory["weights"] > 0
    assert "Nothing was trained" in plan.describe()
    assert repr(plan) == plan.describe()
    assert plan.to_json()["run"] == str(plan.path)
    run = bl.train(**options(backbone, rte, tmp_path))
    assert run.path == plan.path
    assert run.config == plan.config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"criterium": "snr"}, "criterium: no option of a run (did you mean criterion?)"),
        ({"learning_rate": 1.0}, "learning_rate: no option of a run; here it is lr"),
        ({"seed": "2021"}, "seed = '2021': must be a whole number"),
        ({"seed": [1, 2]}, "must be a whole number"),
        ({"target_modules": "query"}, "must be a list of strings"),
    ],
)
def test_wrong_options_are_told(given, message, backbone, rte, tmp_path):
    for verb in (bl.train, bl.plan):
        with pytest.raises(bl.errors.ConfigError) as error:
            verb(**options(backbone, rte, tmp_path, **given))
        assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_all_problems_are_told_at_once():
    with pytest.raises(bl.errors.UserError) as error:
        bl.train(task="rte", criterium="snr", epochs="3")
    assert len(error.value.problems) == 2


def test_none_is_the_default(backbone, rte, tmp_path):
    plain = bl.plan(**options(backbone, rte, tmp_path))
    assert (
        bl.plan(**options(backbone, rte, tmp_path), lr=None, criterion=None).config == plain.config
    )


def test_the_signature_names_every_option():
    for verb in (bl.train, bl.plan):
        parameters = inspect.signature(verb).parameters
        assert set(OPTIONS) < set(parameters)
        assert "preset" in parameters
        assert verb.__doc__


def test_a_criterion_of_ones_own(backbone, rte, tmp_path):
    from bayeslora_cli.config import catalogue

    name = "sure-mine"
    try:
        bl.criteria.register(name, lambda s: s.mean.abs() / s.sigma**2)
        run = bl.train(**options(backbone, rte, tmp_path), criterion=name)
        assert run.ranks.criterion == name
    finally:
        catalogue.CRITERIA.pop(name, None)
