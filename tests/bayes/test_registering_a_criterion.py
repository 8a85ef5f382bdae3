"""A criterion of a user's own script: registered, trained with, resumed; and what cannot be one."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from bayeslora_cli.bayes import criteria
from bayeslora_cli.cli.app import main
from bayeslora_cli.config.catalogue import CRITERIA, criteria_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import ConfigError, UserError
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.training.loop import train
from tests.support.faults import contents, differences
from tests.training.test_loop import options, run_of

ACTIVE = {"max_steps": 20, "t_final": 4, "lr": 0.05, "alpha": 64.0}  # the ranks part


@pytest.fixture(autouse=True)
def own_catalogue(monkeypatch):
    """Each test enters its criteria in a copy's place: afterwards all is as before."""
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


def report_of(run):
    return RankReport.from_json(run.read_json(run.ranks), str(run.ranks))


# ---- a script


def last_first(statistics):
    """A score that does not depend on the training, so that the ranks are known beforehand."""
    return torch.arange(statistics.mean.numel(), dtype=torch.float32)


def small_first(statistics):
    """What a user might try: keep what is small and little known."""
    return statistics.sigma / (1e-3 + statistics.mean.abs())


def test_a_script_trains_with_its_own_criterion(backbone, rte, tmp_path, monkeypatch):
    """As a script would: register, then the command line; the ranks follow the scores."""
    criteria.register("mine", last_first)
    arguments = {
        "task": "rte", "data": rte, "model": backbone("bert", 0.1), "output": tmp_path,
        "criterion": "mine", "max-steps": 6, "t-final": 2, "batch-size": 16,
        "max-length": 16, "device": "cpu", "lr": 0.05,
    }  # fmt: skip
    typed = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["script", "train", *typed])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    (path,) = tmp_path.glob("*/rte-adalora-ivon-mine-*/seed-*")
    report = report_of(RunDir.open(path))
    assert report.criterion == "mine"
    no, yes = False, True
    assert [m.kept for m in report.matrices] == [
        (no, no, no), (no, yes, yes), (yes, yes, yes), (yes, yes, yes)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["sensitivity", "magnitude", "snr"])
def test_it_does_what_one_of_the_package_does(name, backbone, rte, tmp_path):
    """The same function under another name: the same ranks, scores and weights, to the bit."""
    criteria.register("twin", criteria.load_criterion(name).score)
    assert CRITERIA["twin"].needs_posterior == CRITERIA[name].needs_posterior
    assert CRITERIA["twin"].needs_gradient == CRITERIA[name].needs_gradient
    typed = options(backbone, rte, tmp_path, optimizer="ivon", criterion="twin", **ACTIVE)
    resolved = resolve(typed)  # once: a preset has other rates for the package's criteria
    runs = [
        train(replace(resolved, config=replace(resolved.config, criterion=c)))
        for c in (name, "twin")
    ]
    ours, twin = (report_of(run) for run in runs)
    assert ours.matrices == twin.matrices
    assert runs[0].posterior.read_bytes() == runs[1].posterior.read_bytes()


def test_another_criterion_gives_other_ranks(backbone, rte, tmp_path):
    criteria.register("mine", small_first)
    found = [
        report_of(run_of(backbone, rte, tmp_path / c, optimizer="ivon", criterion=c, **ACTIVE))
        for c in ("mine", "snr")
    ]
    assert [m.kept for m in found[0].matrices] != [m.kept for m in found[1].matrices]


def test_a_resumed_run_goes_on_with_it(backbone, rte, tmp_path, killed_at):
    """Its gradient statistics are part of the state, as those of the package's are."""
    criteria.register("mine", lambda s: s.mean.abs() * s.sensitivity)
    changes = {**ACTIVE, "optimizer": "adamw", "criterion": "mine", "checkpoint_every": "1"}
    whole = run_of(backbone, rte, tmp_path / "whole", **changes)
    with killed_at(11):
        run_of(backbone, rte, tmp_path / "parts", **changes)
    resumed = run_of(backbone, rte, tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []


# ---- flags


def test_what_it_reads_decides_where_it_can_be_used(backbone, rte, tmp_path):
    criteria.register("of-sigma", lambda s: s.sigma)
    criteria.register("of-gradients", lambda s: s.uncertainty)
    criteria.register("of-both", lambda s: s.sigma * s.sensitivity)
    criteria.register("of-the-mean", lambda s: s.mean.square())
    flags = {n: (c.needs_posterior, c.needs_gradient) for n, c in CRITERIA.items()}
    assert flags["of-sigma"] == (True, False)
    assert flags["of-gradients"] == (False, True)
    assert flags["of-both"] == (True, True)
    assert flags["of-the-mean"] == (False, False)
    assert {"of-sigma", "of-both"}.isdisjoint(criteria_of("adalora", "adamw"))
    assert {"of-gradients", "of-the-mean"} < set(criteria_of("adalora", "adamw"))
    with pytest.raises(ConfigError, match="--criterion of-sigma: needs a posterior"):
        resolve(options(backbone, rte, tmp_path, optimizer="adamw", criterion="of-sigma"))


def test_given_flags_are_taken_as_they_are():
    """Of a function that reads what only some values lead it to."""
    calls = []
    criteria.register(
        "mine", lambda s: calls.append(s) or s.mean, needs_posterior=True, needs_gradient=True
    )
    assert calls == []
    assert CRITERIA["mine"].needs_posterior
    assert criteria.load_criterion("mine").needs_gradient


# ---- errors


@pytest.mark.parametrize("name", ["snr", "sensitivity"])
def test_a_name_that_is_taken(name):
    with pytest.raises(UserError, match=f"criterion {name}: there is one of this name"):
        criteria.register(name, small_first)
    criteria.register("mine", small_first)
    with pytest.raises(UserError, match="criterion mine: there is one of this name"):
        criteria.register("mine", small_first)


@pytest.mark.parametrize("name", ["", "Mine", "my criterion", "a/b", "-mine", "mine-", "ünd"])
def test_a_name_that_is_none(name):
    with pytest.raises(UserError, match="small letters, digits and hyphens"):
        criteria.register(name, small_first)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s.mean.sum(), r"a score per element, \[4\], and returned \[\]"),
        (lambda s: 1.0, "and returned float"),
        (lambda s: s.mean.log(), "must be finite"),
        (lambda s: s.variance, "no statistic variance: choose of mean, sigma, sensitivity, unc"),
    ],
)
def test_a_function_that_is_no_criterion(function, message):
    with pytest.raises(UserError, match=f"criterion mine: .*{message}"):
        criteria.register("mine", function)
    assert "mine" not in CRITERIA


def test_a_name_that_nobody_registered(backbone, rte, tmp_path):
    with pytest.raises(ConfigError, match="--criterion mine: choose one of"):
        resolve(options(backbone, rte, tmp_path, criterion="mine"))
    criteria.register("mine", small_first)
    resolve(options(backbone, rte, tmp_path, optimizer="ivon", criterion="mine"))
