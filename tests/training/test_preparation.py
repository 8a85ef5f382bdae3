"""What is said of a run before it begins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.models.backbones import packing
from bayeslora_cli.models.backbones.packing import PAYS_FROM
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.preparation import warn_of_few_steps, with_packing
from tests.support.objectives import TWO_CLASSES
from tests.support.tiny_models import tiny_config


@pytest.mark.parametrize(
    ("typed", "rows", "said"),
    [
        ({"eval_every": 10, "max_steps": 40}, 1000, True),
        ({"eval_every": 10, "max_steps": 40}, 320, True),
        ({"eval_every": 10, "max_steps": 41}, 320, False),
        ({"eval_every": 10}, 320, False),
        ({"max_steps": 40}, 1000, False),
    ],
)
def test_an_interval_of_evaluations_that_never_counts(typed, rows, said, caplog):
    """It counts from the second epoch on; a shorter run was evaluated once, without a word."""
    warn_of_few_steps(resolve({"task": "demo", "batch_size": 8, **typed}), rows)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * said
    assert all("--eval-every 10 has no effect" in r.message for r in caplog.records)


@pytest.mark.parametrize(
    ("typed", "begun", "expected"),
    [
        ("auto", None, "auto"),
        ("auto", "on", "on"),
        ("auto", "auto", "auto"),  # as runs of versions without the option
        ("on", "auto", "on"),
        ("off", "on", "off"),
    ],
)
def test_a_run_goes_on_packed_as_it_was_begun(typed, begun, expected, tmp_path, monkeypatch):
    config = resolve({"task": "rte", "packing": typed, "device": "cuda"}).config
    config = replace(config, model=saved(tmp_path / "model", "bert"))
    monkeypatch.setattr(packing, "is_able", lambda gpu: False)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    if begun is not None:
        then = to_toml(replace(config, packing=begun))
        # older versions have not written the option
        run.config.write_text(then.replace('packing = "auto"\n', ""), encoding="utf-8")
    assert with_packing(config, run, TWO_CLASSES).packing == expected
    assert with_packing(replace(config, device="cpu"), run, TWO_CLASSES).packing == (
        expected if begun or typed != "auto" else "on"
    )
    if begun is not None:
        anew = replace(config, overwrite=True)
        assert with_packing(anew, run, TWO_CLASSES).packing == typed


@pytest.mark.parametrize(
    ("kind", "device", "able", "expected"),
    [("bert", "cpu", False, "on"), ("distilbert", "cpu", False, "on"),
     ("bert", "cuda", True, "on"), ("bert", "cuda:1", True, "on"),
     ("bert", "cuda", False, "auto"), ("mpnet", "cpu", False, "on"),
     ("mpnet", "cuda", True, "auto"),
     ("deberta-v2", "cuda", True, "on"), ("deberta-v2", "cuda", False, "auto"),
     ("funnel", "cpu", False, "auto"), ("funnel", "cuda", True, "auto")],
)  # fmt: skip
def test_what_auto_begins_with(kind, device, able, expected, tmp_path, monkeypatch):
    """`auto` in a run's configuration means padded rows of an encoder."""
    monkeypatch.setattr(packing, "is_able", lambda gpu: able)
    config = resolve({"task": "rte", "device": device}).config
    config = replace(config, model=saved(tmp_path / "model", kind))
    assert with_packing(config, RunDir(tmp_path / "run"), TWO_CLASSES).packing == expected
    words = build_objective("token-classification", ("O", "B-X"))
    assert with_packing(config, RunDir(tmp_path / "run"), words).packing == expected


def test_narrow_models_are_padded(tmp_path):
    config = resolve({"task": "rte", "device": "cpu"}).config
    config = replace(config, model=saved(tmp_path / "model", "bert", width=PAYS_FROM - 16))
    assert with_packing(config, RunDir(tmp_path / "run"), TWO_CLASSES).packing == "auto"


def saved(directory, kind, width=PAYS_FROM):
    """The configuration of a small model; its weights are not read."""
    config = tiny_config(kind)
    config.hidden_size, config.relative_attention = width, True
    config.save_pretrained(directory)
    return str(directory)
