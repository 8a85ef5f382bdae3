"""Runs that take over the last one's network: to the bit what they are with one of their own."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import weakref
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.effects import kind
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import ModelError, NonFiniteError, Preempted
from bayeslora_cli.execution.signals import listening
from bayeslora_cli.training import assembly
from bayeslora_cli.training.assembly import Workspace
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.step import TrainStep
from tests.conftest import save_backbone
from tests.methods.blora.test_trainer import ACTIVE
from tests.support.faults import contents, differences
from tests.training.test_loop import options
from tests.training.test_step import METHODS

# whatever a run may have: dropout, several passes a step, a short last batch, checkpoints midway
BUSY = {"grad_accum": 2, "batch_size": 10, "group_by_length": True, "checkpoint_every": "4"}
KINDS = [
    *({"method": m, "optimizer": o, "criterion": c} for m, o, c in METHODS if m != "blora"),
    *(ACTIVE | {"optimizer": o, "lr": lr} for o, lr in (("adamw", 0.02), ("ivon", 1.0))),
    *(ACTIVE | {"blora_mode": mode, "t_init": 0} for mode in ("quant", "rank")),
    BUSY | {"train_samples": 2, "criterion": "sensitivity"},
    BUSY | {"optimizer": "adamw", "lr_schedule": "boost", "boost_lr": 0.1, "boost_until_step": 6},
]


@pytest.fixture
def trained(backbone, rte, tmp_path):
    """Train below a directory with what earlier runs have left, if anything: trained(name, ...)."""

    def run_it(name, workspace=None, *, kind="bert", stop=None, **changes):
        changes = {"model": backbone(kind, 0.1), **changes}
        resolved = resolve(options(backbone, rte, tmp_path / name, **changes))
        return train(resolved, stop=stop, workspace=workspace)

    return run_it


@pytest.mark.parametrize("changes", KINDS, ids=lambda c: "-".join(map(str, c.values()))[:60])
def test_seeds_of_every_method(changes, trained):
    """Files, checkpoints and all."""
    workspace = Workspace()
    trained("shared", workspace, seed=3, **changes)
    setup = workspace.setup
    run = trained("shared", workspace, seed=1, **changes)
    assert workspace.setup is setup is not None
    alone = trained("alone", seed=1, **changes)
    assert differences(run.path, contents(alone.path)) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deberta-v2", {}),  # whose pooler is drawn, and adapted as well
        ("deberta-v2", {"target_modules": ("query_proj",)}),  # and not adapted
        ("deberta-v2", {"method": "lora"}),
        ("deberta-v2", {"method": "full", "criterion": None}),
        ("deberta-v2", ACTIVE | {"quantize_base": True}),
        ("deberta-v2", {"base_precision": "fp8"}),
        ("gpt2", {"gradient_checkpointing": True}),
    ],
)
def test_what_the_seed_draws_of_the_backbone(kind, changes, precision, trained):
    workspace = Workspace()
    changes = {"kind": kind, "precision": precision, "max_steps": 4, **changes}
    trained("shared", workspace, seed=1, **changes)
    setup = workspace.setup
    run = trained("shared", workspace, seed=2, **changes)
    assert workspace.setup is setup is not None
    alone = trained("alone", seed=2, **changes)
    assert differences(run.path, contents(alone.path)) == []


# ---- whatever came before


class Killed(BaseException):
    """Nothing in the package catches it."""


def interrupted(step, what):
    """In place of `TrainStep.__call__`: at a step `what()` is called."""
    original = TrainStep.__call__

    def call(self, at, micro_batches):
        if at == step:
            what(self)
        original(self, at, micro_batches)

    return call


def killed(_):
    raise Killed


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_any_order_after_whatever_happens(data, backbone, rte, tmp_path_factory, monkeypatch):
    """Runs that end, fail, are killed and go on, in one process and by turns in another."""
    root = tmp_path_factory.mktemp("any")
    method, optimizer, criterion = data.draw(st.sampled_from(METHODS))
    changes = {
        "method": method, "optimizer": optimizer, "criterion": criterion, "max_steps": 10,
        "model": backbone("deberta-v2", 0.1), "checkpoint_every": "3",
    }  # fmt: skip
    workspace = Workspace()
    for place, seed in enumerate(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))):
        resolved = resolve(options(backbone, rte, root / f"s{place}", seed=seed, **changes))
        ends = data.draw(st.sampled_from(["whole", "killed here", "killed elsewhere"]))
        if ends != "whole":
            with monkeypatch.context() as patch:
                at = data.draw(st.integers(0, 9))
                patch.setattr(TrainStep, "__call__", interrupted(at, killed))
                with pytest.raises(Killed):
                    train(resolved, workspace=workspace if ends == "killed here" else None)
            assert ends != "killed here" or workspace.setup is None
        run = train(resolved, workspace=workspace)
        assert workspace.setup is not None
        alone = train(resolve(options(backbone, rte, root / f"a{place}", seed=seed, **changes)))
        assert differences(run.path, contents(alone.path)) == []


def test_a_run_that_resumes_in_the_network_of_another(trained, monkeypatch):
    changes = {"criterion": "sensitivity", "checkpoint_every": "4", "kind": "deberta-v2"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", interrupted(9, killed))
        with pytest.raises(Killed):
            trained("parts", seed=2, **changes)
    workspace = Workspace()
    trained("other", workspace, seed=1, **changes)
    setup = workspace.setup
    resumed = trained("parts", workspace, seed=2, **changes)
    assert workspace.setup is setup
    assert len(resumed.read_json(resumed.environment)["resumed"]) == 1
    whole = trained("whole", seed=2, **changes)
    assert differences(resumed.path, contents(whole.path)) == []


def diverged(step):
    step.network.bank.mean.fill_(float("nan"))


def broken(_):
    raise RuntimeError("CUDA error: device-side assert triggered")


def stopped(_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("what", "error"),
    [(diverged, NonFiniteError), (broken, RuntimeError), (stopped, Preempted), (killed, Killed)],
)
def test_what_a_run_leaves_that_did_not_end_well_is_not_used(what, error, trained, monkeypatch):
    """Nor is it held: the next one needs its memory."""
    workspace = Workspace()
    trained("first", workspace, seed=1)
    setup = weakref.ref(workspace.setup)
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", interrupted(5, what))
        with pytest.raises(error), listening() as stop:
            trained("bad", workspace, seed=2, stop=stop)
    assert workspace.setup is None
    gc.collect()
    assert setup() is None
    run = trained("second", workspace, seed=3)
    assert differences(run.path, contents(trained("alone", seed=3).path)) == []


# ---- what may be taken over


def test_a_run_of_another_kind_gets_a_network_of_its_own(trained, monkeypatch):
    """And the old one is gone before the new one is there."""
    workspace, there = Workspace(), []
    trained("first", workspace, seed=1)
    real = assembly.Data

    def data(*arguments):
        there.append(setup())
        return real(*arguments)

    monkeypatch.setattr(assembly, "Data", data)
    for place, changes in enumerate(({"lr": 0.1}, {"precision": "bf16"}, {"method": "lora"})):
        setup, before = weakref.ref(workspace.setup), len(there)
        run = trained("other", workspace, seed=1, **changes)
        assert there[before:] == [None]
        alone = trained(f"alone-{place}", seed=1, **changes)
        assert differences(run.path, contents(alone.path)) == []


def test_a_finished_run_leaves_it_where_it_is(trained):
    workspace = Workspace()
    trained("first", workspace, seed=1)
    setup = workspace.setup
    trained("first", workspace, seed=1)
    assert workspace.setup is setup


ASIDE = {name for name, option in OPTIONS.items() if option.shares_network}
OTHER = {
    "seed": 5, "output": "elsewhere", "overwrite": True, "log_every": 7,
    "log_to": ("tensorboard",), "checkpoint_every": "2",
}  # fmt: skip


def test_what_is_set_aside_changes_nothing_else(trained, tmp_path):
    assert OTHER.keys() == ASIDE
    workspace = Workspace()
    trained("first", workspace, seed=1)
    setup, changes = workspace.setup, {n: v for n, v in OTHER.items() if n != "output"}
    run = trained("second", workspace, **changes)
    assert workspace.setup is setup
    alone = trained("alone", **changes)
    names = [n for n in differences(run.path, contents(alone.path)) if "tensorboard" not in n]
    assert names == ["trackers.json"]  # an identity


@pytest.mark.parametrize("name", OPTIONS)
def test_every_other_option_makes_another_kind(name):
    """A new one, too, unless somebody says that it does not count."""
    config = RunConfig()
    value = object()
    changed = replace(config)
    object.__setattr__(changed, name, value)
    assert (kind(changed) == kind(config)) == (name in ASIDE)
    assert name == "seed" or name not in ASIDE or not OPTIONS[name].affects_result


@pytest.mark.parametrize("what", ["weights", "dropout", "rows", "buffer"])
def test_what_has_changed_on_the_disk_since_is_loaded(what, trained, rte, tmp_path):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(rte, data)
    save_backbone(model, "bert", dropout=0.1)
    changes = {"model": str(model), "data": str(data)}
    workspace = Workspace()
    trained("first", workspace, seed=1, **changes)
    setup = workspace.setup
    if what == "weights":
        save_backbone(model, "bert", dropout=0.1, seed=8)
    elif what == "dropout":
        config = model / "config.json"
        config.write_text(config.read_text().replace("0.1", "0.3"))
    elif what == "rows":
        table = data / "RTE" / "train.tsv"
        table.write_text(table.read_text().replace("w1 ", "w2 ", 1))
        workspace = Workspace()
        workspace.setup = setup
    else:  # a layer that counts
        setup.network.module.bert.embeddings.position_ids += 1
    run = trained("second", workspace, seed=2, **changes)
    assert workspace.setup is not setup
    assert differences(run.path, contents(trained("alone", seed=2, **changes).path)) == []


def test_a_model_that_is_gone_is_said_as_always(trained, tmp_path):
    model = save_backbone(tmp_path / "model", "bert")
    workspace = Workspace()
    trained("first", workspace, seed=1, model=str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"--model {model}: cannot load"):
        trained("second", workspace, seed=2, model=str(model))


# ---- what captured and compiled steps rest on


def test_tensors_and_generator_stay_where_they_are(trained):
    workspace = Workspace()
    trained("first", workspace, seed=1, criterion="sensitivity")
    setup = workspace.setup

    def places():
        bank = setup.network.bank
        tensors = {f"{n}/{k}": t for n, p in setup.parts.items() for k, t in p.tensors().items()}
        tensors |= setup.network.module.state_dict()
        tensors |= {n: getattr(bank, n) for n in ("theta", "noise", "local", "message")}
        tensors |= dict(enumerate(bank.factors.buffers))
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    before, noise, splits = places(), setup.noise, setup.data.splits
    trained("second", workspace, seed=2, criterion="sensitivity")
    assert workspace.setup is setup
    assert places() == before
    assert setup.noise is noise is setup.optimizer.generator
    assert setup.data.splits is splits
    setup.network.bank.check_views()


@pytest.mark.parametrize(
    ("choice", "alike", "deterministic", "expected"),
    [
        ("auto", 1, False, False), ("auto", 3, False, False), ("auto", 4, False, True),
        ("auto", 4, True, False), ("off", 99, False, False), ("on", 1, True, True),
    ],
)  # fmt: skip
def test_compiling_pays_by_the_steps_of_all(choice, alike, deterministic, expected, monkeypatch):
    monkeypatch.setattr("bayeslora_cli.execution.compilation.find_spec", lambda name: True)
    config = RunConfig(compile=choice, deterministic=deterministic, schedule_steps=5000)
    assert assembly._is_worth_compiling(config, alike) == expected
