"""Lists of options become runs, each the one that its own command line gives."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace

import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bayeslora_cli.cli import app
from bayeslora_cli.config.catalogue import CRITERIA, METHODS, OPTIMIZERS
from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.config.values import MOST, parse_names, parse_numbers
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.sweeps.grid import expand
from tests.support.strategies import TABLE, TYPED

TASKS = ("rte", "mrpc", "cola", "demo")


def some(values, most=3):
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


AXES = st.fixed_dictionaries(
    {"task": some(TASKS)},
    optional={
        "method": some(tuple(METHODS)),
        "optimizer": some(tuple(OPTIMIZERS)),
        "criterion": some(tuple(CRITERIA), 5),
        "target_rank": some([1, 2, 4]),
        "seed": some([1, 2, 2021]),
    },
)


def listed(axes):
    return {name: ",".join(map(str, values)) for name, values in axes.items()}


def rows(axes):
    """The method rows that an obvious reading of the lists gives, as a set."""
    found = set()
    for method in axes.get("method", ["adalora"]):
        default = "ivon" if method == "adalora" else "adamw"
        for optimizer in axes.get("optimizer", [default]):
            allowed = TABLE[method, optimizer]
            for criterion in axes.get("criterion", allowed[:1]):
                if allowed == [None]:
                    found.add((method, optimizer, None))
                elif criterion in allowed:
                    found.add((method, optimizer, criterion))
    return found


RANKLESS = ("full", "blora")  # a target rank has no effect, and so is no run of its own


@given(AXES)
@settings(deadline=None)
def test_every_possible_combination_is_a_run_and_no_other(axes):
    single = all(len(axes.get(n, "x")) == 1 for n in ("method", "optimizer", "criterion"))
    expected = rows(axes)
    if single and "criterion" in axes and (None in {c for *_, c in expected}):
        expected = set()  # an ordinary run with a criterion too many
    if not expected:
        with pytest.raises(ConfigError, match="--criterion"):
            expand(listed(axes))
        return
    found = [run.resolved.config for run in expand(listed(axes)).runs]
    points = [
        (c.task, c.method, c.optimizer, c.criterion,
         None if c.method in RANKLESS else c.target_rank, c.seed)
        for c in found
    ]  # fmt: skip
    ranks, seeds = axes.get("target_rank", [2]), axes.get("seed", [2021])
    assert set(points) == {
        (task, *row, None if row[0] in RANKLESS else rank, seed)
        for task, row, rank, seed in itertools.product(axes["task"], expected, ranks, seeds)
    }
    assert len(points) == len(set(points))


@given(AXES, TYPED)
@settings(deadline=None)
def test_each_is_what_its_own_options_resolve_to(axes, typed):
    """Presets of each task included; and no two have one directory."""
    try:
        sweep = expand({**typed, **listed(axes)})
    except ConfigError:
        return
    for run in sweep.runs:
        alone = resolve(run.typed)
        assert replace(alone, notices=()) == replace(run.resolved, notices=())
    paths = [run.run.path for run in sweep.runs]
    assert len(set(paths)) == len(paths)


PARSER = typer.main.get_command(app.app).commands["train"]


def as_typed(line):
    """What the command line makes of a command: (fields, preset)."""
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("bayeslora", "train")
    given = PARSER.make_context("train", arguments).params
    typed = {n: v for n, v in given.items() if n in OPTIONS and v is not None}
    for name in ("target_modules", "text_columns", "log_to"):
        if name in typed:
            typed[name] = tuple(part for part in typed[name].split(",") if part)
    return typed, given["preset"]


@given(AXES, TYPED, st.sampled_from([None, "learned-posterior"]))
@settings(deadline=None, max_examples=30)
@example({"task": ["rte"]}, {"data": "/", "output": "a 'b' $c", "overwrite": True}, None)
@example({"task": ["rte"]}, {"target_modules": ("query", "x y"), "deterministic": True}, None)
@example({"task": ["rte"]}, {"lr": 1e-7, "ess": 1e22, "output": "-x", "model": "a/b"}, None)
def test_a_printed_command_gives_the_very_run(axes, typed, preset):
    typed = {name: value for name, value in typed.items() if value is not None}
    try:
        sweep = expand({**typed, **listed(axes)}, preset)
    except ConfigError:
        return
    for run in sweep.runs:
        again, its_preset = as_typed(run.command())
        (alone,) = expand(again, its_preset).runs
        assert alone.run.path == run.run.path
        assert alone.resolved.config == run.resolved.config


def test_what_is_left_out_is_said_once():
    sweep = expand(
        {"task": "rte,mrpc", "seed": "1-3", "method": "adalora,lora", "optimizer": "adamw",
         "criterion": "snr,sensitivity", "lr": 0.1, "ess": 3.0}
    )  # fmt: skip
    assert len(sweep.runs) == 2 * 2 * 3
    assert sweep.notices == (
        "left out --method adalora --optimizer adamw --criterion snr --lr 0.1 (6 runs): "
        "--criterion snr: needs a posterior: use --optimizer ivon, or one of sensitivity, "
        "magnitude",
        "--method lora allocates no ranks: it is trained without --criterion",
        "--ess has no effect with --optimizer adamw",
    )
    assert not any(run.resolved.notices for run in sweep.runs)


def test_one_run_is_the_ordinary_run():
    sweep = expand({"task": "rte", "seed": "7", "optimizer": "adamw", "ess": 3.0})
    (run,) = sweep.runs
    assert sweep.notices == ()
    assert run.resolved == resolve({"task": "rte", "seed": 7, "optimizer": "adamw", "ess": 3.0})
    with pytest.raises(ConfigError) as caught:
        expand({"task": "rtee", "lr": -1.0})
    assert [p.split()[0] for p in caught.value.problems] == ["--task", "--lr"]


def test_seeds_vary_fastest_and_tasks_slowest():
    runs = expand({"seed": "2-3", "criterion": "snr,magnitude", "task": "rte,cola"}).runs
    found = [(c.task, c.criterion, c.seed) for c in (run.resolved.config for run in runs)]
    assert found == list(itertools.product(("rte", "cola"), ("snr", "magnitude"), (2, 3)))
    assert runs[0].label == "rte-adalora-ivon-snr-r2/seed-2"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"criterion": "snr,snrr"}, r"--criterion snrr: choose .*\(did you mean snr\?\)"),
        ({"task": "rte,mrcp"}, r"--task mrcp: choose .*\(did you mean mrpc\?\)"),
        ({"seed": "5-1"}, "--seeds 5-1: the range 5-1 is empty"),
        ({"seed": f"1-{MOST + 1}"}, "more than 10,000 numbers"),
        ({"seed": "1,,2"}, "--seeds 1,,2: give whole numbers"),
        ({"seed": ""}, "--seeds : give whole numbers"),
        ({"seed": "1.5"}, "--seeds 1.5"),
        ({"target_rank": "two"}, "--target-rank two: give whole numbers"),
        ({"method": ","}, "--method ,: give a name"),
    ],
)
def test_lists_that_cannot_be_read(typed, message):
    with pytest.raises(ConfigError, match=message):
        expand({"task": "rte", **typed})


def test_a_number_that_cannot_be_is_left_out_as_any_combination():
    (notice,) = expand({"task": "rte", "target_rank": "2,0"}).notices
    assert notice.startswith("left out --task rte --target-rank 0 (1 run): --target-rank 0: must ")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_numbers(numbers):
    assert parse_numbers(",".join(map(str, numbers))) == tuple(dict.fromkeys(numbers))
    low, high = min(numbers), max(numbers)
    assert parse_numbers(f" {low}-{high} ") == tuple(range(low, high + 1))


def test_names_keep_their_order_and_come_once():
    assert parse_names(" b, a,,b ") == ("b", "a")


# ---- what is done


@pytest.fixture
def planned(tmp_path):
    (run,) = expand({"task": "rte", "output": str(tmp_path)}).runs
    return run


def finish(run, **other):
    directory = run.run
    directory.path.mkdir(parents=True)
    config = replace(run.resolved.config, t_init=3, schedule_steps=9, max_length=7, **other)
    directory.config.write_text(to_toml(config))
    directory.result.write_text("{}")


def test_a_finished_run_is_done(planned):
    assert not planned.is_done()
    finish(planned)
    assert planned.is_done()
    planned.run.result.unlink()
    assert not planned.is_done()


@pytest.mark.parametrize("other", [{"lr": 3.0}, {"seed": 1}, {"data": "elsewhere"}])
def test_another_run_in_its_place_is_not_it(planned, other):
    finish(planned, **other)
    assert not planned.is_done()


def test_done_by_a_version_with_other_defaults_of_what_has_no_effect(planned):
    assert planned.resolved.config.method != "blora"
    finish(planned, lambda_quant=3.0, reg="bop")
    assert planned.is_done()


def test_what_is_to_be_overwritten_is_not_done(planned):
    finish(planned)
    again = expand({**planned.typed, "overwrite": True}).runs[0]
    assert not again.is_done()
    planned.run.config.write_text("no toml")
    assert not planned.is_done()


def test_modes_and_weights_of_the_penalties():
    """Where a weight has no effect its values are one run."""
    found = expand(
        {
            "task": "rte", "method": "blora", "blora_mode": "both,quant,rank",
            "lambda_quant": "1e-4, 0.001", "lambda_rank": "0.01",
        }
    )  # fmt: skip
    points = [
        (c.blora_mode, c.lambda_quant, c.lambda_rank)
        for c in (run.resolved.config for run in found.runs)
    ]
    assert points == [
        ("both", 1e-4, 0.01), ("both", 1e-3, 0.01), ("quant", 1e-4, 0.1), ("quant", 1e-3, 0.1),
        ("rank", 1e-3, 0.01),
    ]  # fmt: skip
    for run in found.runs:
        again, _ = as_typed(run.command())
        assert [r.run.path for r in expand(again).runs] == [run.run.path]


def test_learning_rates():
    """Each has its directory, the preset's own the one without a hash."""
    typed = {"task": "rte", "optimizer": "ivon,adamw", "lr": "0.5,1", "boost_lr": "2,4"}
    found = expand(typed)
    points = [(c.optimizer, c.lr, c.boost_lr) for c in (run.resolved.config for run in found.runs)]
    assert points == [
        ("ivon", 0.5, 2), ("ivon", 0.5, 4), ("ivon", 1, 2), ("ivon", 1, 4), ("adamw", 0.5, None),
        ("adamw", 1, None),
    ]  # fmt: skip
    assert found.runs[0].run.path.parent.name == "rte-adalora-ivon-snr-r2"
    assert len({run.run.path for run in found.runs}) == 6
    for run in found.runs:
        again, _ = as_typed(run.command())
        assert [r.run.path for r in expand(again).runs] == [run.run.path]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"lr": "1e-3,much"}, "--lr 1e-3,much: give a number, or several"),
        ({"lr": "-1"}, "--lr -1.0: "),
        ({"lambda_quant": "1e-4,x"}, "--lambda-quant 1e-4,x: give a number, or several"),
        ({"lambda_rank": ""}, "--lambda-rank : give a number"),
        ({"lambda_quant": "-1"}, "--lambda-quant -1.0: must be finite and not negative"),
        ({"lambda_quant": "nan,inf"}, "--lambda-quant nan: must be finite"),
        ({"blora_mode": "both,quants"}, r"--blora-mode quants: choose one .*mean quant\?"),
    ],
)
def test_weights_that_are_none(typed, message):
    with pytest.raises(ConfigError, match=message):
        expand({"task": "rte", "method": "blora", **typed})
