"""`bl.results` and `bl.inspect_ranks`: many runs, as the commands print them."""

from __future__ import annotations

import csv
import io
import json

import pytest

import bayeslora_cli as bl
from bayeslora_cli.cli.app import main
from bayeslora_cli.runs.atomic_write import write_json
from tests.support.finished_runs import reseal
from tests.support.ranked_runs import allocation, names
from tests.support.scored_runs import score, write_scored


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for optimizer, criterion in (("ivon", "snr"), ("adamw", "sensitivity")):
        for seed in (1, 2):
            run = write_scored(
                root, "rte", score(criterion, "rte", seed), seed=seed, optimizer=optimizer,
                criterion=criterion,
            )  # fmt: skip
            report = allocation(names(2), seed=seed, criterion=criterion)
            write_json(run.ranks, report.to_json())
            reseal(run.path)
    return root


def said(capsys, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["bayeslora", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    return capsys.readouterr().out


def test_results_are_the_table_that_the_command_prints(runs, capsys, monkeypatch):
    found = bl.results(runs)
    assert len(found.rows) == 2
    assert found.table(80).split() == said(capsys, monkeypatch, "table", runs).split()
    assert found.to_json() == json.loads(said(capsys, monkeypatch, "table", runs, "--json"))
    for form, text in (("markdown", found.to_markdown()), ("latex", found.to_latex()),
                       ("csv", found.to_csv())):  # fmt: skip
        assert said(capsys, monkeypatch, "table", runs, f"--{form}").strip() == text.strip()
    assert len(list(csv.DictReader(io.StringIO(found.to_csv())))) == 2
    assert repr(found) == found.table()


def test_rows_are_compared(runs):
    test = bl.results(runs).paired("ivon snr", "adamw")
    assert test["pairs"] == 2
    with pytest.raises(bl.errors.UserError, match="no such row"):
        bl.results(runs).paired("ivon snr", "nothing")


def test_results_of_several_paths_and_another_evaluation(runs):
    several = bl.results(*(run for run in runs.rglob("seed-1")), at="last")
    assert [row.seeds for row in several.rows] == [(1, 1), (1, 1)]
    with pytest.raises(bl.errors.UserError, match="--at lost: choose one of"):
        bl.results(runs, at="lost")
    with pytest.raises(bl.errors.RunDirError):
        bl.results(runs / "nothing")


@pytest.mark.parametrize("view", ["ranks", "scores"])
def test_ranks_are_what_the_command_prints(runs, view, capsys, monkeypatch):
    one = next(run for run in sorted(runs.rglob("seed-1")) if "ivon" in str(run)).parent
    words = ["inspect-ranks", one, "--json", *([] if view == "ranks" else [f"--{view}"])]
    found = bl.inspect_ranks(one, view=view)
    assert found.to_json() == json.loads(said(capsys, monkeypatch, *words))
    assert found.name == view
    assert list(found.rows())
    assert repr(found) == str(found.draw())


def test_panels_and_differences(runs, tmp_path):
    assert bl.inspect_ranks(runs).name == "panels"
    a, b = sorted({run.parent for run in runs.rglob("seed-1")})
    assert bl.inspect_ranks(a, b, view="difference").name == "difference"
    with pytest.raises(bl.errors.UserError, match=r"view diference: .*did you mean difference"):
        bl.inspect_ranks(a, b, view="diference")
    bl.inspect_ranks(a).save(tmp_path / "ranks.svg")
    assert (tmp_path / "ranks.svg").read_text().startswith("<?xml")
