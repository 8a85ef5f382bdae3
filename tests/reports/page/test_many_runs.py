"""A page about many runs: it stays small, and says which runs it shows in detail."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from bayeslora_cli.api.reading import report as api
from bayeslora_cli.reports.page.html import join
from bayeslora_cli.reports.page.page import DETAILED, content, page, sections
from bayeslora_cli.reports.page.records import detailed, load_records
from tests.support.page_runs import write_shown
from tests.support.pages import Page

CRITERIA = ("snr", "sensitivity")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two methods, two data sets, three seeds."""
    root = tmp_path_factory.mktemp("few")
    for seed in (1, 2, 3):
        for criterion in CRITERIA:
            for task in ("rte", "mrpc"):
                write_shown(root, task, 0.6 + seed / 100, seed=seed, criterion=criterion)
    return root


@pytest.fixture(scope="module")
def loaded(few):
    return load_records([few])


def copies(records, count):
    """As many runs as `count`, by further seeds."""
    return [
        replace(r, anchor=f"run-{i}", config=replace(r.config, seed=i))
        for i, r in enumerate((list(records) * (count // len(records) + 1))[:count])
    ]


@pytest.mark.parametrize(
    ("most", "seeds"),
    [(100, {1, 2, 3}), (12, {1, 2, 3}), (11, {1, 2}), (8, {1, 2}), (4, {1})],
)
def test_each_group_keeps_as_many_seeds(loaded, most, seeds):
    chosen = detailed(loaded[0], most)
    assert {r.config.seed for r in chosen} == seeds
    assert len(chosen) == 4 * len(seeds)
    assert chosen == [r for r in loaded[0] if r in chosen]  # in the same order


def test_more_groups_than_there_is_room_for(loaded):
    records, results = loaded
    chosen = detailed(records, 3)
    assert [r.config.seed for r in chosen] == [1, 1, 1]
    found = " ".join(Page(sections(records, results, most=3)[0].body).texts)
    assert "those of 3 runs, the first seed of each" in found
    assert "as far as there is room (3 of 4)" in found


def test_all_runs_are_counted_and_some_are_shown(loaded):
    records, results = loaded
    bodies, figures = content(sections(records, results, most=4))
    found = Page(join(bodies.values()))
    assert not found.open
    said = " ".join(found.texts)
    assert "counts all 12 runs" in said
    assert "4 of 12 runs" in said
    assert all(str(r.run.path) in found.texts for r in records)
    assert len(figures["seeds-0"]["data"][0]["x"]) == 3
    assert len(figures["ranks"]["runs"]) == 4
    assert {link[1:] for link in found.links if link.startswith("#run-")} == {
        r.anchor for r in detailed(records, 4)
    }
    whole = Page(join(content(sections(records, results))[0].values()))
    assert not any("counts all" in text for text in whole.texts)


def test_a_page_about_a_thousand_runs_is_small(loaded):
    records, results = loaded
    many = copies(records, 1_100)
    parts = sections(many, results)
    text = page(many, parts)
    assert len(text.encode()) < api.BYTES
    assert "Tables of runs end after the first 1,000." in text
    assert len(next(p for p in parts if p.anchor == "ranks").figures["ranks"]["runs"]) <= (
        DETAILED + 4  # means over seeds
    )


def test_a_page_that_is_too_large_shows_fewer_runs(few, tmp_path, monkeypatch, caplog):
    whole = api.report(few, output=tmp_path / "whole.html", evaluate=False).stat().st_size
    monkeypatch.setattr(api, "BYTES", whole - 1)
    small = api.report(few, output=tmp_path / "small.html", evaluate=False)
    assert small.stat().st_size < whole
    assert "of 12 runs: " in small.read_text(encoding="utf-8")
    assert not caplog.records


def test_problems_of_many_runs_are_one_line(tmp_path, caplog):
    for seed in (1, 2, 3):
        write_shown(tmp_path, seed=seed).result.write_text("{")
    write_shown(tmp_path, seed=4)
    with caplog.at_level(logging.WARNING):
        records, _ = load_records([tmp_path])
    assert len(records) == 1
    (line,) = caplog.messages
    assert line.startswith("3 runs (")
    assert "and others) are left out: result.json " in line
