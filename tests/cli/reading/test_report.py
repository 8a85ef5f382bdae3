"""`bayeslora report`, from outside."""

from __future__ import annotations

import json

import pytest

from tests.support.page_runs import frozen, write_shown
from tests.support.pages import Page


@pytest.mark.parametrize("name", ["lora-ivon", "regression"])
def test_a_run_is_evaluated_for_its_page(typed, tmp_path, name):
    run, output = frozen(tmp_path, name), tmp_path / "new" / "page.html"
    code, out, err = typed("report", run, "--output", output, "--samples", 2, "--device", "cpu")
    assert (code, out) == (0, f"{output}\n"), err
    found = Page(output.read_text(encoding="utf-8"))
    texts = " ".join(found.texts)
    assert "Most wrong about" in texts
    assert "over samples" in texts
    assert ("Least sure of" in texts, "reliability-0" in found.figures) == (
        True,
        name == "lora-ivon",
    )
    best = json.loads((run / "result.json").read_text())["best_at_budget"]
    assert set(best["metrics"]["validation"].values()) <= set(map(float, found.cells))


def test_runs_whose_data_are_gone_are_shown_without_predictions(typed, tmp_path):
    run, output = frozen(tmp_path, "full-adamw"), tmp_path / "page.html"
    (tmp_path / "topics-dev.csv").unlink()
    code, _, err = typed("report", run, "--output", output, "--device", "cpu")
    assert code == 0
    assert "shown without predictions" in err
    assert "without predictions: " in output.read_text(encoding="utf-8")


def test_files_only(typed, tmp_path):
    write_shown(tmp_path)
    output = tmp_path / "page.html"
    assert typed("report", tmp_path, "--output", output, "--no-evaluate")[0] == 0
    assert output.stat().st_size < 8_000_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "a.pdf"], "ends in .html"),
        (["--live", "--samples", "2"], "--samples: --live reads only files"),
        (["--port", "8000"], "--port: only with --live"),
        (["--no-evaluate", "--samples", "2"], "loads no model"),
        (["--at", "bset"], "choose one of best_at_budget, best, last"),
    ],
)
def test_what_does_not_go_together(typed, tmp_path, options, said):
    write_shown(tmp_path)
    code, _, err = typed("report", tmp_path, *options)
    assert code == 2
    assert said in err


def test_there_is_no_run(typed, tmp_path):
    code, _, err = typed("report", tmp_path)
    assert code == 2
    assert "there is no run below it" in err
