"""docs/python.md: its blocks run in order, as one notebook."""

from __future__ import annotations

import pytest

import bayeslora_cli as bl
from bayeslora_cli.config import catalogue
from tests.test_readme import DOCS, blocks


@pytest.fixture
def criteria_stay():
    before = dict(catalogue.CRITERIA)
    yield
    for name in catalogue.CRITERIA.keys() - before.keys():
        del catalogue.CRITERIA[name]


@pytest.mark.usefixtures("minilm", "criteria_stay", "few_demo_rows")
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    cells = blocks((DOCS / "python.md").read_text(encoding="utf-8"), "python")
    assert len(cells) > 8
    for number, cell in enumerate(cells):
        exec(compile(cell, f"python.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "Nothing was trained" in said
    assert "here it is lr" in said
    assert "adalora-ivon-mine-r2" in said
    assert names["run"].ranks.criterion == "snr"
    assert names["rows"][0].keys() >= {"step", "name", "rank"}
    assert isinstance(names["run"], bl.Run)
    assert "<table" in names["run"]._repr_html_()
