"""Validation and files of configurations."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.catalogue import GLUE_TASKS
from bayeslora_cli.config.files.toml_files import from_toml, to_toml
from bayeslora_cli.config.resolution import (
    resolve,
)
from bayeslora_cli.config.run_config import OPTIONS, RunConfig, flag
from bayeslora_cli.errors import ConfigError, UserError
from tests.support.strategies import FLOATS, NOT_RESULT, ROWS, TABLE, configs


def problems(values):
    with pytest.raises(ConfigError) as caught:
        RunConfig(**values)
    return caught.value.problems


# ---- validation


@pytest.mark.parametrize(("method", "optimizer", "criterion"), ROWS)
def test_the_tables_rows_are_accepted(method, optimizer, criterion):
    config = resolve(
        {"task": "rte", "method": method, "optimizer": optimizer, "criterion": criterion}
    ).config
    assert (config.method, config.optimizer, config.criterion) == (method, optimizer, criterion)


@pytest.mark.parametrize("criterion", ["snr", "snr-abs", "precision"])
def test_posterior_criteria_want_ivon(criterion):
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "rte", "optimizer": "adamw", "criterion": criterion})
    (problem,) = caught.value.problems
    assert problem.startswith(f"--criterion {criterion}: ")
    assert "--optimizer ivon" in problem
    assert "sensitivity, magnitude" in problem


@pytest.mark.parametrize("criterion", TABLE["adalora", "ivon"])
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_methods_without_allocation_take_no_criterion(method, optimizer, criterion):
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "rte", "method": method, "optimizer": optimizer, "criterion": criterion})
    (problem,) = caught.value.problems
    assert problem.startswith(f"--criterion {criterion}: ")
    assert f"--method {method}" in problem


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("task", "mrcp", "mrpc"),
        ("method", "adalroa", "adalora"),
        ("optimizer", "adam", "adamw"),
        ("criterion", "snr_abs", "snr-abs"),
        ("criterion", "magnitud", "magnitude"),
        ("precision", "fp23", "fp32"),
        ("lr_schedule", "liner", "linear"),
    ],
)
def test_near_names_are_suggested(name, value, meant):
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "rte", name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{flag(name)} {value}: choose one of ")
    assert f"(did you mean {meant}?)" in problem


def test_far_names_are_not_suggested():
    (problem,) = problems({"task": "imagenet"})
    assert "did you mean" not in problem
    assert all(task in problem for task in GLUE_TASKS)


NAN = float("nan")
# one fault a field, none of which brings another field's into being
FAULTS = {
    "task": ["squad"], "precision": ["fp8"], "lr_schedule": ["polynomial"],
    "criterion": ["random", None],
    "target_rank": [0, -1], "delta_t": [0], "t_final": [0], "batch_size": [0],
    "grad_accum": [0, 3], "train_samples": [0], "max_length": [0], "eval_batch_size": [0],
    "log_every": [-5], "t_init": [-1], "warmup_steps": [-1], "boost_until_step": [-1],
    "orth_reg": [-0.1, NAN], "weight_decay": [-1e-9, NAN], "seed": [-1],
    "alpha": [0.0, -1.0, NAN], "lr": [0.0, NAN], "epochs": [0.0, NAN], "hess_init": [0.0, NAN],
    "clip_radius": [-1e-3, NAN], "max_steps": [0], "ess": [0.0, NAN], "eval_every": [0],
    "lambda_quant": [-1.0, NAN, 1.1e9], "lambda_rank": [-1e-9, 1e25],
    "gate_lr": [0.0, NAN], "range_lr": [-1.0],
    "bit_ladder": ["", "2,8", "32"], "reg": ["mean"], "blora_mode": ["all"],
    "boost_lr": [0.0, NAN], "ivon_beta1": [1.0, -0.1, NAN], "ivon_beta2": [1.0, NAN],
}  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in FAULTS.items()}).filter(
        # 0 examples can be split into any number of micro-batches
        lambda v: v and not ("batch_size" in v and "grad_accum" in v)
    )
)
def test_all_problems_at_once(faults):
    """One line for each fault, with its flag, the value received and what to do."""
    found = problems(faults)
    assert len(found) == len(faults)
    for name, value in faults.items():
        lines = [p for p in found if p.startswith(f"{flag(name)} {value}: ")]
        assert len(lines) == 1
        assert len(lines[0].removeprefix(f"{flag(name)} {value}: ")) > 5


def test_every_problem_is_in_the_message():
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "mrcp", "method": "lorra", "optimizer": "sgd", "lr": -1.0})
    assert str(caught.value).splitlines() == list(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert isinstance(caught.value, UserError)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "name", "fix"),
    [
        ({"target_rank": 4, "init_rank": 3}, "target_rank", "--init-rank"),
        ({"grad_accum": 5}, "grad_accum", "--batch-size"),
        (
            {"method": "full", "optimizer": "adamw", "criterion": None, "train_samples": 2},
            "train_samples",
            "--optimizer ivon",
        ),
        ({"lr_schedule": "boost"}, "lr_schedule", "--boost-lr"),
    ],
)
def test_values_that_contradict_each_other(values, name, fix):
    (problem,) = problems(values)
    assert problem.startswith(f"{flag(name)} {values[name]}: ")
    assert fix in problem


@pytest.mark.parametrize("name", [n for n in FLOATS if n != "clip_radius"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_values(name, value, request):
    """Nothing trains with them: they have to be said before hours of loading and training."""
    boost = {"lr_schedule": "boost"} if name == "boost_lr" else {}
    (problem,) = problems({name: value} | boost)
    assert problem.startswith(f"{flag(name)} {value}: ")


# ---- what affects the result


def test_fields_that_do_not_affect_the_result():
    """Decides what a resume refuses: written out, so that a change here is a decision."""
    assert {n for n, f in OPTIONS.items() if not f.affects_result} == NOT_RESULT


# ---- files


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_toml_round_trip(config):
    assert from_toml(to_toml(config), "config.toml") == config


def test_no_criterion_survives_the_round_trip():
    """TOML has no null, and the field's default is a criterion."""
    config = resolve({"task": "rte", "method": "lora"}).config
    assert config.criterion is None
    assert "criterion" not in tomllib.loads(to_toml(config))
    assert from_toml(to_toml(config), "config.toml") == config
    adalora = to_toml(replace(RunConfig(), criterion="magnitude"))
    assert from_toml(adalora, "config.toml").criterion == "magnitude"


@pytest.mark.parametrize(
    "text",
    [
        to_toml(RunConfig()) + "\nlearning_rate = 1\n",  # a key of another version
        to_toml(RunConfig()).replace("seed = ", "seed "),  # not TOML
        to_toml(RunConfig())[:-3] + '"',  # cut off
        to_toml(RunConfig()).replace("lr = 0.001", 'lr = "fast"'),
        to_toml(RunConfig()) + "\ntarget_modules = 3\n",
        to_toml(RunConfig()).replace('task = "rte"', 'task = "squad"'),
    ],
)
def test_files_that_are_no_configuration(text):
    with pytest.raises(UserError):
        from_toml(text, "there/config.toml")


def test_a_damaged_file_is_not_one_of_another_version():
    with pytest.raises(UserError, match=r"^there/config\.toml is corrupt: "):
        from_toml('task = "rt', "there/config.toml")


def test_unknown_keys_are_named():
    with pytest.raises(UserError, match=r"there/config\.toml.*learning_rate"):
        from_toml(to_toml(RunConfig()) + "\nlearning_rate = 1\n", "there/config.toml")


@pytest.mark.parametrize(("value", "wanted"), [(True, "blocks"), (False, "off")])
def test_true_and_false_of_earlier_versions(value, wanted):
    """In Python, in presets and in the files of runs."""
    config = RunConfig(task="rte", schedule_steps=9, gradient_checkpointing=value)
    assert config.gradient_checkpointing == wanted
    text = to_toml(config).replace(f'"{wanted}"', str(value).lower(), 1)
    assert f"gradient_checkpointing = {str(value).lower()}" in text
    assert from_toml(text, "config.toml") == config
    assert resolve({"task": "rte", "gradient_checkpointing": value}).config == resolve(
        {"task": "rte", "gradient_checkpointing": wanted}
    ).config  # fmt: skip


def test_what_is_recomputed_is_one_of_these():
    (problem,) = problems({"gradient_checkpointing": "all"})
    assert problem == "--gradient-checkpointing all: choose one of off, blocks, selective"


def test_only_frozen_weights_are_divided():
    full = {"task": "rte", "method": "full", "criterion": None, "target_rank": 1, "init_rank": 1}
    (problem,) = problems({**full, "optimizer": "adamw", "shard": True})
    assert problem == "--shard: --method full trains the weights, and divides none"
    blora = {"task": "rte", "method": "blora", "criterion": None, "init_rank": 8}
    (problem,) = problems({**blora, "quantize_base": True, "shard": True})
    assert "not together with --quantize-base" in problem
