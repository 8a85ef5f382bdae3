"""The table in its forms; the drawings are in tests/golden, see test_views."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from bayeslora_cli.reports.results.rows import load_results
from bayeslora_cli.reports.results.table import Table, read_reference
from bayeslora_cli.reports.results.table_drawing import as_csv, draw, latex, markdown
from tests.support.scored_runs import write_scored, write_sweep

GOLDEN = Path(__file__).parents[2] / "golden"
FORMS = {"plain": (False, True), "ascii": (False, False), "colour": (True, True)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = write_sweep(tmp_path_factory.mktemp("runs"))
    write_scored(root, "rte", 0.7, seed=1, lr=3.0)
    write_scored(root, "demo", 0.99)
    path = root / "reference.json"
    row = {"method": "lora", "optimizer": "adamw", "criterion": None, "target_rank": 2}
    values = {"cola": 69.07, "group2": 84.35, "mnli": 90.0}
    path.write_text(json.dumps({"source": "a paper", "rows": [{**row, "values": values}]}))
    return Table(results=load_results([root]), reference=read_reference(path))


def same(name, text):
    path = GOLDEN / name
    if os.environ.get("BAYESLORA_RENEW_GOLDEN"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [160, 100, 50])
def test_on_a_terminal(table, width, form):
    colour, unicode = FORMS[form]
    text = draw(table, width=width, colour=colour, unicode=unicode)
    assert unicode or text.plain.isascii()
    assert all(len(line) <= width for line in text.plain.splitlines())
    file = io.StringIO()
    Console(file=file, force_terminal=colour, width=999, color_system="truecolor").print(text)
    same(f"table-{width}-{form}.txt", file.getvalue().removesuffix("\n"))


def test_markdown(table):
    text = markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(table.titles()) + 2}
    same("table-markdown.txt", text)


def test_latex(table):
    text = latex(table)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {len(table.titles()) - 1}
    assert not re.search(r"(?<!\\)[_#%]", "\n".join(body))
    same("table-latex.txt", text)


def test_csv(table):
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    expected = list(table.rows())
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in expected]
    assert [row["mark"] or None for row in rows] == [row["mark"] for row in expected]


def test_names_cannot_command_a_terminal(tmp_path):
    write_scored(tmp_path, "rte", 0.5, target_modules=("\x1b[31mq",))
    write_scored(tmp_path, "rte", 0.5, target_modules=("|x_",))
    table = Table(results=load_results([tmp_path]))
    assert "\x1b" not in draw(table, width=80, colour=False, unicode=True).plain
    assert r"\|x\_" in markdown(table)
