"""The page: what it holds, that it asks for nothing, and that text from elsewhere stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from hypothesis import Phase, given, settings

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.page.html import join, script_json
from bayeslora_cli.reports.page.page import (
    check_page,
    content,
    own_text,
    page,
    sections,
)
from bayeslora_cli.reports.page.predictions import Example, RunPredictions
from bayeslora_cli.reports.page.records import load_records
from bayeslora_cli.reports.page.sections import ranks as sections_ranks
from bayeslora_cli.reports.page.sections.curves import _range_of
from bayeslora_cli.reports.page.sections.summary import title
from bayeslora_cli.reports.results.paired_test import compare
from tests.support.page_runs import frozen, write_shown
from tests.support.pages import HOSTILE, Page

BINS = [{"rows": 0, "confidence": 0.0, "accuracy": 0.0}] * 9 + [
    {"rows": 4 + i, "confidence": 0.6 + i / 20, "accuracy": 0.55 + i / 20} for i in range(6)
]


def predictions(text="a text", label="yes"):
    example = Example(split="validation", row=3, texts=(text, text), label=label, predicted=text,
                      measure=0.5)  # fmt: skip
    return RunPredictions(
        metrics={"mean": {"validation": {"accuracy": 0.5}}},
        bins={"mean": {"validation": BINS}},
        least_sure=(example,),
        most_wrong=(example,),
        measures={"unsure": "entropy", "wrong": "probability of the label"},
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, two data sets, three seeds, and B-LoRA, regression and an unfinished run."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in (1, 2, 3):
        for i, criterion in enumerate(("snr", "sensitivity")):
            for task in ("rte", "mrpc"):
                write_shown(root / "runs", task, 0.6 + 0.03 * i + seed / 100, seed=seed,
                            criterion=criterion)  # fmt: skip
    frozen(root, "blora-ivon")
    frozen(root, "regression")
    frozen(root, "full-adamw")
    frozen(root, "adalora-adamw-sensitivity", "unfinished")
    return load_records([root / "runs"])


def shown(sweep, **changes):
    """The page without its scripts, and the figures."""
    records, results = sweep
    records = [replace(r, **changes) for r in records]
    predicted = {r.anchor: predictions() for r in records if r.result is not None}
    bodies, figures = content(sections(records, results, predicted, {"no data": 2}))
    return Page(join([*bodies.values(), script_json(figures, "figures")]))


def test_every_part_is_there(sweep):
    records, results = sweep
    predicted = {records[0].anchor: predictions()}
    found = [part.anchor for part in sections(records, results, predicted)]
    assert found == [
        "summary", "comparison", "curves", "ranks", "bits", "scores", "calibration", "posterior",
        "examples", "repeat",
    ]  # fmt: skip


def test_figures_are_as_plotly_takes_them(sweep):
    """Their names are checked against the library's own schema; colours are the page's."""
    figures = shown(sweep).figures
    assert len(figures) > 20
    for name, spec in figures.items():
        if name != "ranks":
            text = re.sub(r'"@[a-z0-9-]+"', '"red"', json.dumps(spec))
            go.Figure(**json.loads(text))


def test_each_figure_has_words_and_numbers(sweep):
    records, results = sweep
    predicted = {records[0].anchor: predictions()}
    for part in sections(records, results, predicted):
        found = Page(part.body)
        assert not found.open
        assert found.tags.count("figure") == len(part.figures) == part.body.count('role="img"')
        assert part.body.count('role="img" aria-label="') == len(part.figures)
        assert found.tags.count("table") == found.tags.count("caption")
        ids = re.findall(r' id="([^"]+)"', part.body)
        assert len(ids) == len(set(ids))


def test_scores_of_result_json_are_in_full(sweep):
    cells = set(map(float, shown(sweep).cells))
    finished = [record.result for record in sweep[0] if record.result is not None]
    assert len(finished) == 15
    for result in finished:
        assert set(result["best_at_budget"]["metrics"]["validation"].values()) <= cells


def test_the_differences_are_those_of_the_table(sweep):
    _, results = sweep
    snr, sensitivity = (
        next(r for r in results.rows if r.name.startswith(f"adalora-ivon-{criterion}-r2"))
        for criterion in ("snr", "sensitivity")
    )
    test = compare(sensitivity, snr)
    assert test["pairs"] == 6
    cells = {abs(float(c)) for c in shown(sweep).cells}
    assert abs(test["difference"]) in cells
    assert test["t"] in cells or test["wilcoxon"] in cells


def test_many_runs_are_thinned(sweep, monkeypatch):
    """First and last step stay, scores stay with each group's first seed; the page says so."""
    whole = shown(sweep).figures["ranks"]["runs"]
    monkeypatch.setattr(sections_ranks, "LETTERS", 3 * 17 * 2 * len(whole))
    monkeypatch.setattr(sections_ranks, "SCORES", 10)
    found = shown(sweep)
    assert any("the first seed of each method" in text for text in found.texts)
    runs = found.figures["ranks"]["runs"]
    assert [run["name"] for run in runs] == [run["name"] for run in whole]
    assert max(len(run["steps"]) for run in runs) < max(len(run["steps"]) for run in whole)
    for run, before in zip(runs, whole, strict=True):
        assert (run["steps"][0], run["steps"][-1]) == (before["steps"][0], before["steps"][-1])
        assert len(run["ranks"]) == len(run["steps"])
        assert run["ranks"][-1] == before["ranks"][-1]
    scored = [run["name"] for run in runs if run["scores"] and "snr-r2" in run["name"]]
    assert len(scored) < len([run for run in whole if run["scores"] and "snr-r2" in run["name"]])


def test_methods_and_their_settings_are_counted_apart(tmp_path):
    for rate in (1.0, 2.0):
        write_shown(tmp_path, lr=rate)
    records, _ = load_records([tmp_path])
    assert title(records) == "2 runs of 1 method, in 2 settings, on rte"


def test_curves_that_do_not_move_have_an_axis_near_them(tmp_path):
    write_shown(tmp_path)
    (record,), _ = load_records([tmp_path])
    assert _range_of([(record, ([1, 2], [0.5, 0.5]))])["range"] == pytest.approx([0.475, 0.525])
    assert _range_of([(record, ([1], [0.0]))])["range"] == pytest.approx([-0.05, 0.05])
    assert _range_of([(record, ([1, 2], [0.5, 0.6]))]) == {}


def test_scores_of_both_directions_are_compared_apart(tmp_path):
    for seed in (1, 2, 3):
        for i, criterion in enumerate(("snr", "sensitivity")):
            write_shown(tmp_path, "rte", 0.6 + 0.1 * i, seed=seed, criterion=criterion)
            write_shown(
                tmp_path, "mrpc", 0.6 - 0.1 * i, seed=seed, criterion=criterion, metric="nll"
            )
    records, results = load_records([tmp_path])
    part = next(p for p in sections(records, results) if p.anchor == "comparison")
    (more,), (less,) = (
        [trace["x"][0] for trace in part.figures[name]["data"]]
        for name in ("differences", "differences-less")
    )
    assert more == pytest.approx(10)  # sensitivity minus snr
    assert less == pytest.approx(-0.1)
    assert "of scores of which less is better" in part.body


def test_kinds_that_have_nothing_in_common_are_not_compared(tmp_path):
    write_shown(tmp_path, "rte", criterion="snr")
    write_shown(tmp_path, "mrpc", criterion="sensitivity")
    records, results = load_records([tmp_path])
    assert "comparison" not in [part.anchor for part in sections(records, results)]


def test_the_page_is_one_file_that_runs_only_its_own_scripts(sweep):
    records, results = sweep
    text = page(records, sections(records, results))
    assert len(text.encode()) < 8_000_000
    found = Page(text)
    assert not found.open
    assert len(found.scripts) == 3  # the figures' data, plotly, ours
    assert all(link.startswith(("#", "data:")) for link in found.links)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert policy.count("sha256-") == 2
    assert text.count("plotly.js v") == 1


@settings(max_examples=20, phases=[Phase.generate])
@given(HOSTILE, HOSTILE, HOSTILE)
def test_names_and_texts_from_elsewhere_stay_text(few, name, text, label):
    records, results = few.read
    changed = [
        replace(
            record,
            group=f"{record.group}{name}",
            column=f"{record.column}{text}",
            config=replace(record.config, model=name),
            environment={**record.environment, "device_name": name, "command": ["train", text]},
            task=None if record.task is None else replace(record.task, classes=(name, label)),
        )
        for record in records
    ]
    predicted = {r.anchor: predictions(text, label) for r in changed if r.result is not None}
    bodies, figures = content(sections(changed, results, predicted, {text: 1}))
    found = Page(join([*bodies.values(), script_json(figures, "figures")]))
    assert not found.open
    assert set(found.tags) <= set(few.usual.tags)
    assert found.attributes <= few.usual.attributes
    assert found.tags.count("script") == 1
    for spec in found.figures.values():
        for trace in spec.get("data", []):
            assert "<" not in str(trace.get("name", ""))


class Few:
    """Two runs that have every part, with a short repr, which hypothesis prints."""

    def __init__(self, root):
        write_shown(root / "runs", criterion="snr")
        frozen(root, "blora-ivon")
        self.read = load_records([root / "runs"])
        self.usual = shown(self.read)

    def __repr__(self):
        return "few"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return Few(tmp_path_factory.mktemp("few"))


def test_colours_have_contrast():
    """By WCAG 2: 4.5 for text on its ground, 3 for the marks of figures; in both schemes."""
    css = own_text("page.css")
    light, dark = css.split("@media (prefers-color-scheme: dark)", 1)
    for scheme in (light, light + dark.partition("* {")[0]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", scheme))
        for ground in ("page", "card", "mark"):
            for text in ("text", "soft", "link"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        marks = [n for n in colours if n.startswith("series-")]
        assert len(marks) == 8
        for mark in (*marks, "kept", "pruned", "muted", "focus"):
            assert contrast(colours[mark], colours["card"]) >= 3, mark


def contrast(a, b):
    def light(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"ends in \.html"):
        check_page(tmp_path / "page.pdf")
    (tmp_path / "a.html").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        check_page(tmp_path / "a.html")
    monkeypatch.setattr("bayeslora_cli.reports.page.page.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bayeslora\[report\]'"):
        check_page(tmp_path / "page.html")
