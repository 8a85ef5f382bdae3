"""Layers of presets and what is typed, scaling, names of runs."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.catalogue import GLUE_TASKS, METHODS, OPTIMIZERS
from bayeslora_cli.config.effects import affecting, check_schedule, without_effect
from bayeslora_cli.config.files.presets import presets_directory
from bayeslora_cli.config.resolution import (
    Resolved,
    resolve,
    scale_schedule,
)
from bayeslora_cli.config.run_config import OPTIONS, SCHEDULED, RunConfig, flag
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.runs.directory import run_name
from tests.support.strategies import FLOATS, FREE, NOT_RESULT, ROWS, TABLE, TYPED

# ---- layers


def slow_preset(task, method, optimizer, criterion):
    table = tomllib.loads((presets_directory() / f"{task}.toml").read_text(encoding="utf-8"))
    values = {}
    for section in (
        {k: v for k, v in table.items() if not isinstance(v, dict)},
        table.get(method, {}),
        table.get(f"{method}-{optimizer}", {}),
        table.get(f"{method}-{optimizer}-{criterion}", {}),
    ):
        values |= section
    named = {True: "blocks", False: "off"}  # presets of earlier versions said so
    given = values.get("gradient_checkpointing")
    return values if given is None else values | {"gradient_checkpointing": named[given]}


@settings(max_examples=60, deadline=None)
@given(task=st.sampled_from(GLUE_TASKS), row=st.sampled_from(ROWS), typed=TYPED)
def test_typed_wins_over_preset_wins_over_default(task, row, typed):
    method, optimizer, criterion = row
    head = {"task": task, "method": method, "optimizer": optimizer, "criterion": criterion}
    resolved = resolve(head | typed)
    preset = slow_preset(task, *row)
    idle = without_effect(method, optimizer, preset | head | typed)
    assert len(resolved.notices) == len(typed.keys() & idle.keys())
    typed = {name: value for name, value in typed.items() if name not in idle}
    for name, f in OPTIONS.items():
        got, source = getattr(resolved.config, name), resolved.sources[name]
        if name in head | typed:
            assert (got, source) == ((head | typed)[name], "command line")
        elif name in preset:
            assert (got, source) == (preset[name], f"preset {task}")
        else:
            assert source == "default"
            ranks = {"adalora": (3, 2), "blora": (8, 8)}.get(method, (2, 2))
            expected = dict(zip(("init_rank", "target_rank"), ranks, strict=True))
            expected["output"] = str(Path("runs").resolve())
            assert got == expected.get(name, f.default)
    assert resolved.changed == {
        name: value
        for name, value in (head | typed).items()
        if name not in NOT_RESULT
        # a typed step number stays where the preset's would scale, even an equal one
        and ((name in SCHEDULED and name in preset) or value != (_untyped(head) | head)[name])
    }


def _untyped(head):
    config = resolve(head).config
    return {name: getattr(config, name) for name in OPTIONS}


def test_presets_that_replace_each_other():
    """The more special section wins: RTE warms up for 100 steps with IVON, 200 by sensitivity."""
    head = {"task": "rte", "method": "adalora"}
    found = [
        resolve(head | {"optimizer": o, "criterion": c}).config.warmup_steps
        for o, c in (("adamw", "sensitivity"), ("ivon", "snr"), ("ivon", "sensitivity"))
    ]
    assert found == [200, 100, 200]


@pytest.mark.parametrize(("method", "optimizer"), TABLE)
@pytest.mark.parametrize("task", GLUE_TASKS)
def test_default_criterion(task, method, optimizer):
    config = resolve({"task": task, "method": method, "optimizer": optimizer}).config
    assert config.criterion == TABLE[method, optimizer][0]


def test_default_method_and_optimizer():
    assert resolve({"task": "cola"}).config == resolve(
        {"task": "cola", "method": "adalora", "optimizer": "ivon", "criterion": "snr"}
    ).config  # fmt: skip
    assert resolve({"task": "cola", "method": "lora"}).config.optimizer == "adamw"
    assert resolve({"task": "cola", "method": "full"}).config.optimizer == "adamw"


@pytest.mark.parametrize("target", [1, 2, 3, 4, 5, 8])
def test_initial_rank(target):
    """Half as much again, as the paper's 3 for 2 and 6 for 4; a fixed rank starts where it ends."""
    typed = {"task": "cola", "target_rank": target}
    assert resolve(typed).config.init_rank == {1: 2, 2: 3, 3: 5, 4: 6, 5: 8, 8: 12}[target]
    assert resolve(typed | {"method": "lora"}).config.init_rank == target
    assert resolve(typed | {"init_rank": 20}).config.init_rank == 20


def test_directories_become_absolute(tmp_path, monkeypatch):
    """So that config.toml means the same from anywhere; hub names stay names."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given_path in ("here", "./here/../here", "~/here"):
        config = resolve({"task": "rte", "data": given_path, "model": given_path}).config
        assert config.data == config.model == str(tmp_path.resolve() / "here")
    assert resolve({"task": "rte", "model": "org/name"}).config.model == "org/name"


def test_paths_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for option in ("data", "train_file", "eval_file", "model", "output"):
        for path in ("~nouser/x", "x" * 5000, "a\0b", str(tmp_path / "loop")):
            values = {"task": "rte", option: path}
            if option.endswith("_file"):
                values = {"train_file": path, option: path}
            with pytest.raises(ConfigError, match=r"^--\w+(-file)? .*; give a path that can"):
                resolve(values)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="--output runs: No such file or directory"):
        resolve({"task": "rte"})


# ---- the schedule


@pytest.mark.parametrize(
    ("values", "total", "named"),
    [
        ({"warmup_steps": 10}, 10, ["--warmup-steps 10"]),
        ({"lr_schedule": "boost", "boost_lr": 1.0, "boost_until_step": 10}, 10,
         ["--boost-until-step 10"]),
        ({"t_init": 6, "t_final": 5}, 10, ["--t-init 6 --t-final 5"]),
        ({"warmup_steps": 11, "t_init": 11, "lr_schedule": "boost", "boost_lr": 1.0,
          "boost_until_step": 11}, 10,
         ["--warmup-steps 11", "--boost-until-step 11", "--t-init 11 --t-final 1"]),
    ],
)  # fmt: skip
def test_schedules_that_do_not_fit(values, total, named):
    """Each phase that the run has no room for; one step more, or less, and it fits."""
    with pytest.raises(ConfigError) as caught:
        check_schedule(RunConfig(**values), total)
    assert len(caught.value.problems) == len(named)
    for problem, start in zip(caught.value.problems, named, strict=True):
        assert problem.startswith(start)
        assert str(total) in problem.removeprefix(start)
    check_schedule(RunConfig(**values), total + 2)


@pytest.mark.parametrize(
    ("ratio", "total", "steps"), [(0.1, 100, 10), (0.29, 100, 29), (0.99, 10, 9), (0.0, 10, 0)]
)
def test_a_warm_up_may_be_a_share_of_the_steps(ratio, total, steps):
    """It takes the place of a preset's own number of steps, and of a typed one, with a notice."""
    resolved = resolve({"task": "rte", "method": "lora", "warmup_ratio": ratio})
    assert resolved.config.warmup_steps > 0
    assert scale_schedule(resolved, total)[0].warmup_steps == steps
    again = resolve({"task": "rte", "warmup_ratio": ratio, "warmup_steps": 3})
    assert again.notices == ("--warmup-steps has no effect with --warmup-ratio",)
    assert scale_schedule(again, total)[0].warmup_steps == steps


def test_options_of_adamw_say_why_ivon_has_none():
    resolved = resolve({"task": "rte", "max_grad_norm": 1.0, "weight_decay_of": "matrices"})
    assert resolved.config.max_grad_norm is None
    assert resolved.config.weight_decay_of == "all"
    assert sorted(resolved.notices) == [
        "--max-grad-norm has no effect with --optimizer ivon, whose --clip-radius bounds each "
        "element of the step",
        "--weight-decay-of has no effect with --optimizer ivon, whose --weight-decay belongs to "
        "the prior of all weights",
    ]
    adamw = resolve({"task": "rte", "optimizer": "adamw", "max_grad_norm": 1.0})
    assert adamw.config.max_grad_norm == 1.0
    assert not adamw.notices


def test_phases_that_a_method_has_not_are_not_checked():
    config = RunConfig(
        method="lora", optimizer="adamw", criterion=None, init_rank=2, t_init=99, t_final=99
    )
    check_schedule(config, 10)
    check_schedule(RunConfig(boost_until_step=99), 10)


@settings(max_examples=300, deadline=None)
@given(
    task=st.sampled_from(GLUE_TASKS), row=st.sampled_from(ROWS), total=st.integers(1, 2000)
)  # fmt: skip
def test_presets_fit_any_run(task, row, total):
    """Only typed numbers can be an error: a preset's scale down to a single step."""
    method, optimizer, criterion = row
    resolved = resolve(
        {"task": task, "method": method, "optimizer": optimizer, "criterion": criterion}
    )
    before = resolved.config
    planned = before.schedule_steps
    config, notice = scale_schedule(resolved, total)
    check_schedule(config, total)
    assert config.t_init + config.t_final <= total
    if total > 1 and method == "adalora":
        # or the budget would never fall, see test_schedules
        assert config.t_init < total - config.t_final
    changed = []
    for name in SCHEDULED:
        old, new = getattr(before, name), getattr(config, name)
        if old is None:
            assert new is None
            continue
        exact = old * total / planned
        lowest = {"t_final": 1, "delta_t": 1, "eval_every": min(old, 50)}
        lowest = lowest.get(name, 0)
        assert max(lowest, exact - 1) <= new <= max(lowest, exact)
        idle = without_effect(method, optimizer, {"lr_schedule": config.lr_schedule})
        if new != old and name not in idle:
            changed.append(f"{flag(name)} {new}")
    # nothing else moves, and one line tells it all
    rest = {n for n in OPTIONS if getattr(before, n) != getattr(config, n)}
    assert rest <= {*SCHEDULED, "schedule_steps"}
    assert config.schedule_steps == total
    if changed:
        assert (
            notice
            == f"schedule scaled from {planned} to {total} steps, --lr not: {', '.join(changed)}"
        )
    else:
        assert notice is None


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_no_notice_at_the_presets_own_length(task):
    resolved = resolve({"task": task})
    assert scale_schedule(resolved, resolved.config.schedule_steps) == (resolved.config, None)


@settings(max_examples=100, deadline=None)
@given(
    task=st.sampled_from(GLUE_TASKS),
    total=st.integers(1, 2000),
    typed=st.fixed_dictionaries(
        {},
        optional={
            "warmup_steps": st.integers(0, 2500),
            "boost_until_step": st.integers(0, 2500),
            "t_init": st.integers(0, 2500),
            "t_final": st.integers(1, 2500),
            "delta_t": st.integers(1, 2500),
            "eval_every": st.integers(1, 2500),
        },
    ),
)
def test_typed_numbers_are_never_scaled(task, total, typed):
    resolved = resolve({"task": task} | typed)
    typed = {n: v for n, v in typed.items() if resolved.sources[n] == "command line"}  # not idle
    refused, config, notice = "", None, None
    try:
        config, notice = scale_schedule(resolved, total)
    except ConfigError as error:
        refused = str(error)
    if refused:
        # the user's own numbers are the error, and the message names one of them
        assert any(f"{flag(n)} {v}" in refused for n, v in typed.items())
        return
    assert {name: getattr(config, name) for name in typed} == typed
    assert all(f"{flag(name)} " not in (notice or "") for name in typed)
    # and the others scale as if nothing had been typed
    untyped, _ = scale_schedule(resolve({"task": task}), total)
    assert all(getattr(config, n) == getattr(untyped, n) for n in SCHEDULED if n not in typed)


# ---- names


def test_names_of_the_plain_rows():
    names = {
        row: run_name(resolve({"task": "rte", "method": row[0], "optimizer": row[1]}
                              | ({"criterion": row[2]} if row[2] else {})))
        for row in ROWS
    }  # fmt: skip
    assert names["adalora", "ivon", "snr"] == Path(
        "microsoft--deberta-v3-base/rte-adalora-ivon-snr-r2/seed-2021"
    )
    assert names["lora", "adamw", None] == Path(
        "microsoft--deberta-v3-base/rte-lora-adamw-r2/seed-2021"
    )
    assert names["full", "ivon", None] == Path("microsoft--deberta-v3-base/rte-full-ivon/seed-2021")
    assert len(set(names.values())) == len(ROWS)


def hashed(typed):
    """The directory's hash, or None."""
    last = run_name(resolve({"task": "rte"} | typed)).parts[1].rpartition("-")[2]
    return last if len(last) == 8 and set(last) <= set(string.hexdigits) else None


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ({}, False),
        ({"criterion": "snr", "seed": 3, "target_rank": 4, "model": "org/other"}, False),
        ({"device": "cpu", "output": "elsewhere", "log_every": 3, "eval_batch_size": 1,
          "overwrite": True, "gradient_checkpointing": "selective", "deterministic": True,
          "checkpoint_every": "30s"}, False),
        ({"lr": 0.5, "alpha": 32.0, "init_rank": 3}, False),  # the preset's own
        ({"t_init": 600}, True),  # the preset's own, but it will not scale
        ({"lr": 0.4}, True),
        ({"max_steps": 100}, True),
        ({"init_rank": 4}, True),
        ({"data": "."}, True),
        ({"target_modules": ("query_proj",)}, True),
        ({"precision": "bf16"}, True),
    ],
)  # fmt: skip
def test_hash_only_for_what_changes_the_result(typed, wanted):
    assert (hashed(typed) is not None) == wanted


@pytest.mark.parametrize("name", [n for n in FLOATS if n not in ("validation", "temperature")])
def test_whole_numbers_hash_as_floats(name, request):
    """`--alpha 16` and `--alpha 16.0` are one run."""
    value = 0 if name in ("dropout", "ivon_beta1", "ivon_beta2", "warmup_ratio") else 16
    # boost_lr has to differ from RTE's preset, 2.0, as all the others do
    usual = METHODS["adalora"].options
    typed = {"method": "blora"} if name in set(METHODS["blora"].options) - {*usual} else {}
    typed |= {"optimizer": "adamw"} if name in OPTIMIZERS["adamw"].options else {}
    assert hashed(typed | {name: value}) == hashed(typed | {name: float(value)}) is not None


@settings(max_examples=100, deadline=None)
@given(TYPED, TYPED)
def test_different_values_have_different_names(first, second):
    one, other = (resolve({"task": "cola"} | typed) for typed in (first, second))
    assume(affecting(one.config) != affecting(other.config))
    assert run_name(one) != run_name(other)


@settings(max_examples=100, deadline=None)
@given(typed=TYPED, data=st.data())
def test_names_do_not_depend_on_what_does_not_matter(typed, data):
    """Nor on the order of typing."""
    other = data.draw(st.fixed_dictionaries({}, optional={n: FREE[n] for n in NOT_RESULT}))
    shuffled = dict(data.draw(st.permutations(list((typed | other).items()))))
    assert run_name(resolve({"task": "cola"} | typed)) == run_name(
        resolve(shuffled | {"task": "cola"})
    )


def test_names_tell_typed_from_scaled_numbers():
    """--t-init 600 in 2700 steps of RTE prunes from step 600 on; the preset's 600 from 415 on."""
    short = {"task": "rte", "max_steps": 2700}
    scaled, typed = resolve(short), resolve(short | {"t_init": 600})
    assert scale_schedule(scaled, 2700)[0].t_init != scale_schedule(typed, 2700)[0].t_init
    assert run_name(scaled) != run_name(typed)


def test_names_tell_two_owners_apart():
    models = [resolve({"task": "rte", "model": f"{owner}/bert"}) for owner in ("a", "b")]
    assert run_name(models[0]) != run_name(models[1])


def test_names_of_local_models(tmp_path):
    """A directory's last part, or two where the last says nothing; its path is in the hash."""
    for parts in (("a", "tiny"), ("b", "tiny"), ("mine", "final")):
        tmp_path.joinpath(*parts).mkdir(parents=True)
    names = [
        run_name(resolve({"task": "rte", "model": str(tmp_path / p)}))
        for p in ("a/tiny", "b/tiny", "mine/final")
    ]
    assert [name.parts[0] for name in names] == ["tiny", "tiny", "mine-final"]
    assert names[0] != names[1]


def test_names_are_stable_between_processes():
    """A job that is started again must find its directory, whatever PYTHONHASHSEED is."""
    typed = [
        {"task": "rte", "lr": 0.1, "ess": 1e6, "target_modules": ("b", "a"), "max_steps": 10},
        {"task": "mnli", "max_steps": 10, "precision": "bf16", "epochs": 2.0, "alpha": 8.0},
    ]
    program = (
        "import json, sys\n"
        "from bayeslora_cli.config.resolution import resolve\n"
        "from bayeslora_cli.runs.directory import run_name\n"
        "for t in json.load(sys.stdin):\n"
        "    if 'target_modules' in t: t['target_modules'] = tuple(t['target_modules'])\n"
        "    print(run_name(resolve(t)).as_posix())\n"
    )
    for seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(typed),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.split() == [run_name(resolve(t)).as_posix() for t in typed]


def test_unknown_preset_keys_are_named(tmp_path, monkeypatch):
    (tmp_path / "rte.toml").write_text("lr = 1.0\nlearning_rate = 1\n[adalora]\nrank = 3\n")
    monkeypatch.setattr("bayeslora_cli.config.files.presets.presets_directory", lambda: tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "rte"})
    assert len(caught.value.problems) == 2
    assert all("rte.toml" in problem for problem in caught.value.problems)
    assert "learning_rate" in str(caught.value)
    assert "rank" in str(caught.value)


def test_resolved_is_frozen():
    resolved = resolve({"task": "rte"})
    assert isinstance(resolved, Resolved)
    with pytest.raises(AttributeError):
        resolved.config.lr = 1.0


@pytest.mark.parametrize(
    ("typed", "idle"),
    [
        ({"method": "lora", "t_init": 5, "orth_reg": 0.5}, {"t_init", "orth_reg"}),
        ({"method": "full", "target_rank": 4, "alpha": 8.0}, {"target_rank", "alpha"}),
        ({"optimizer": "adamw", "ess": 10.0, "train_samples": 3}, {"ess", "train_samples"}),
        ({"lr_schedule": "linear", "boost_lr": 3.0}, {"boost_lr"}),
        ({"max_steps": 5, "epochs": 2.0}, {"epochs"}),
        ({"method": "lora", "lambda_quant": 1.0, "reg": "bop"}, {"lambda_quant", "reg"}),
        (
            {"method": "blora", "target_rank": 4, "t_init": 9, "delta_t": 2},
            {"target_rank", "delta_t"},
        ),
        ({"method": "blora", "blora_mode": "rank", "range_lr": 1.0, "gate_lr": 1.0}, {"range_lr"}),
        (
            {"method": "blora", "bit_ladder": "8", "lambda_quant": 1.0, "range_lr": 1.0},
            {"lambda_quant"},
        ),
        (
            {"method": "blora", "blora_mode": "quant", "lambda_rank": 1.0, "reg": "bop"},
            {"lambda_rank"},
        ),
        ({"boost_lr": 3.0}, set()),  # RTE's preset has a plateau
    ],
)
def test_options_without_effect_are_said_and_make_no_other_run(typed, idle):
    resolved = resolve({"task": "rte"} | typed)
    assert {n for n in typed if any(flag(n) + " has" in line for line in resolved.notices)} == idle
    without = {name: value for name, value in typed.items() if name not in idle}
    plain = resolve({"task": "rte"} | without)
    assert plain.config == resolved.config
    assert run_name(plain) == run_name(resolved)


def test_typed_epochs_take_the_place_of_a_presets_steps(tmp_path):
    own = tmp_path / "short.toml"
    own.write_text("max_steps = 40\nschedule_steps = 40\nt_init = 10\nt_final = 10\n")
    for preset, steps in (("ivon-lora", 10000), (str(own), 40)):
        typed = {"task": "arc-easy", "epochs": 2.0}
        resolved = resolve(typed, preset)
        assert (resolved.config.epochs, resolved.config.max_steps) == (2.0, None)
        assert resolved.sources["max_steps"] == "default"
        assert f"takes the place of --max-steps {steps} of --preset" in resolved.notices[0]
        # where steps are typed, too, they win
        both = resolve(typed | {"max_steps": 7}, preset)
        assert both.config.max_steps == 7
        assert "--epochs has no effect" in both.notices[0]
    scaled = scale_schedule(resolved, 80)[0]
    assert (scaled.t_init, scaled.t_final, scaled.schedule_steps) == (20, 20, 80)
