"""An option is declared at one field, and a choice in one table: the rest follows from these."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass

import pytest

from bayeslora_cli.cli.help.train_options import takes_options, typed_values
from bayeslora_cli.config import run_config
from bayeslora_cli.config.catalogue import CRITERIA, METHODS, OPTIMIZERS, CriterionEntry
from bayeslora_cli.config.effects import affecting, without_effect
from bayeslora_cli.config.files.presets import read_preset, sections
from bayeslora_cli.config.files.toml_files import from_file, from_toml, to_toml
from bayeslora_cli.config.options import LENGTH, PANELS, beside, declared, option
from bayeslora_cli.config.resolution import resolve, scale_schedule
from bayeslora_cli.config.run_config import OPTIONS, RunConfig, flag
from bayeslora_cli.config.values import at_least_one
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.reports.results.rows import load_results
from bayeslora_cli.runs.directory import run_name
from bayeslora_cli.sweeps.grid import AXES, expand
from tests.support.scored_runs import write_scored


def test_every_field_says_what_it_is():
    for name, found in OPTIONS.items():
        assert found.name == name
        assert found.panel in PANELS
        assert found.text()
        flag = found.typed_as or f"--{name.replace('_', '-')}"
        assert found.flag == (flag if found.typed else f"({name})")
        assert found.default is None or found.choices is None or found.default in found.choices


def test_conditions_and_entries_name_options():
    for found in OPTIONS.values():
        assert {condition.name for condition in found.idle_when} <= OPTIONS.keys()
    for entry in (*METHODS.values(), *OPTIMIZERS.values()):
        assert set(entry.options) <= OPTIONS.keys()
    for optimizer in OPTIMIZERS.values():
        assert optimizer.reasons.keys() <= OPTIONS.keys() - set(optimizer.options)
    for method in METHODS.values():
        assert method.reasons.keys() <= OPTIONS.keys() - set(method.options)
        assert (method.free_rank is not None) == (
            method.has_ranks and "target_rank" not in method.options
        )


def test_flags_keys_of_files_and_fields_are_the_same(tmp_path):
    @takes_options
    def command(**options):
        pass

    names = {name for name, found in OPTIONS.items() if found.typed}
    assert inspect.signature(command).parameters.keys() == names
    config = RunConfig()
    written = {line.split(" = ")[0] for line in to_toml(config).splitlines()}
    assert written == {name for name, value in asdict(config).items() if value is not None}
    values = {n: v for n, v in asdict(config).items() if v is not None and n in names}
    preset = tmp_path / "all.toml"
    preset.write_text(to_toml(config))
    assert read_preset(preset).keys() >= values.keys()


def test_sweeps_vary_in_this_order():
    """Arrays of printed commands are numbered by it."""
    assert AXES == (
        "task", "target_rank", "method", "optimizer", "criterion", "blora_mode", "base_precision",
        "temperature", "lr", "lr_schedule", "boost_lr", "warmup_ratio", "max_grad_norm",
        "lambda_quant", "lambda_rank", "seed",
    )  # fmt: skip


# ---- a new option: its field, and what reads it


@dataclass(frozen=True, kw_only=True, slots=True)
class Extended(RunConfig):
    """A configuration with one field more."""

    patience: int = option(
        5, LENGTH, "Evaluations without progress before the run stops",
        checks=(at_least_one,), scales=2, idle_when=(beside("eager", True),),
    )  # fmt: skip


@pytest.fixture
def extended(monkeypatch):
    """The new field, as if it stood in `RunConfig`."""
    for name, found in declared(Extended).items():
        monkeypatch.setitem(OPTIONS, name, found)
    for module in ("config.resolution", "config.files.toml_files"):
        monkeypatch.setattr(f"bayeslora_cli.{module}.RunConfig", Extended)
    scheduled = (*run_config.SCHEDULED, "patience")
    monkeypatch.setattr("bayeslora_cli.config.resolution.SCHEDULED", scheduled)


@pytest.mark.usefixtures("extended")
def test_a_new_option_is_one_field(tmp_path):
    @takes_options
    def command(**options):
        pass

    parameter = inspect.signature(command).parameters["patience"]
    assert parameter.annotation.__metadata__[0].help == (
        "Evaluations without progress before the run stops (default: 5)."
    )
    assert flag("patience") == "--patience"
    assert typed_values({"patience": 3, "lr": None}) == {"patience": 3}
    with pytest.raises(ConfigError, match="--patience 0: must be at least 1"):
        resolve({"task": "rte", "patience": 0})
    with pytest.raises(TypeError, match="patience = 'x': must be a whole number"):
        from_file("patience", "x")
    assert from_toml(to_toml(Extended(patience=7)), "x") == Extended(patience=7)

    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "rte"\n[lora]\npatience = 9\n')
    resolved = resolve({"task": "rte", "method": "lora"}, str(preset))
    assert (resolved.config.patience, resolved.sources["patience"]) == (9, f"preset {preset}")
    typed = resolve({"task": "rte", "patience": 8})
    assert typed.changed == {"patience": 8}
    assert run_name(typed) != run_name(resolve({"task": "rte"}))
    total = resolved.config.schedule_steps
    assert scale_schedule(resolved, total // 3)[0].patience == 3
    assert scale_schedule(resolved, total // 9)[0].patience == 2

    assert without_effect("lora", "adamw", {"eager": True})["patience"] == "--eager"
    assert "patience" in affecting(resolved.config)
    idle = resolve({"task": "rte", "eager": True, "patience": 8})
    assert idle.notices == ("--patience has no effect with --eager",)


# ---- a new criterion: its function, and its entry


def test_a_new_criterion_is_one_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(
        CRITERIA, "mine", CriterionEntry(implementation="x:y", needs_posterior=True)
    )
    assert resolve({"task": "rte", "criterion": "mine"}).config.criterion == "mine"
    with pytest.raises(ConfigError, match="--criterion mine: needs a posterior: use --optimizer"):
        resolve({"task": "rte", "optimizer": "adamw", "criterion": "mine"})
    with pytest.raises(ConfigError, match=r"--criterion mina: .*did you mean mine"):
        resolve({"task": "rte", "criterion": "mina"})
    assert "mine" in OPTIONS["criterion"].text()
    assert "adalora-ivon-mine" in sections()
    sweep = expand({"task": "rte", "criterion": "snr,mine"})
    assert [run.resolved.config.criterion for run in sweep.runs] == ["snr", "mine"]
    for criterion in ("mine", "snr", "precision"):
        write_scored(tmp_path, "rte", 0.8, criterion=criterion)
    assert [row.key[2] for row in load_results([tmp_path]).rows] == ["snr", "precision", "mine"]
