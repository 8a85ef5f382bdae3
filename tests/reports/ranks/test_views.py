"""What `inspect-ranks` draws, at pinned widths, and its JSON and tables.

The drawings are in tests/golden; `BAYESLORA_RENEW_GOLDEN=1` writes them anew. Look at the change.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bayeslora_cli.reports.ranks.history_reading import load_history
from bayeslora_cli.reports.ranks.run_groups import load_group
from bayeslora_cli.reports.ranks.score_distribution import load_scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks
from bayeslora_cli.reports.terminal_shading import SHADES
from tests.support.ranked_runs import DECODER, allocation, constant, names, write_run, write_seeds

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = {12: names(12), 48: names(48, DECODER, pooler=False)}
RANKS = {12: {"init_rank": 3}, 48: {"init_rank": 12}}
VIEWS = ("run", "mean", "difference", "history", "mean-history", "scores", "mean-scores")
MODES = {
    "ascii": {"colour": False, "unicode": False},
    "plain": {"colour": False, "unicode": True},
    "colour": {"colour": True, "unicode": True},
}
CASES = [
    *((12, 80, view, mode) for view in VIEWS if view != "mean-history" for mode in MODES),
    (12, 80, "mean-history", "plain"),
    *((12, 200, view, "plain") for view in ("run", "mean", "difference", "history", "scores")),
    *((48, 80, view, "plain") for view in ("run", "mean", "difference", "scores")),
    *((48, 200, view, mode) for view in ("run", "mean", "difference") for mode in MODES),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of three seeds by number of layers and criterion."""
    path = tmp_path_factory.mktemp("runs")
    for layers, layer_names in NAMES.items():
        write_seeds(path / str(layers) / "snr", layer_names, **RANKS[layers])
        write_seeds(
            path / str(layers) / "sensitivity", layer_names, seeds=(1, 2), criterion="sensitivity",
            **RANKS[layers],
        )  # fmt: skip
    return path


def view_of(runs, layers, name):
    snr = runs / str(layers) / "snr"
    if name == "difference":
        return Difference(a=load_group([runs / str(layers) / "sensitivity"]), b=load_group([snr]))
    kind = name.removeprefix("mean-")
    group = load_group([snr if name.startswith("mean") else snr / "seed-2021"])
    make = {"history": load_history, "scores": load_scores}
    return make[kind](group) if kind in make else Ranks(group=group)


@pytest.mark.parametrize(("layers", "width", "name", "mode"), CASES)
def test_drawings(runs, layers, width, name, mode):
    text = view_of(runs, layers, name).draw(width=width, **MODES[mode])
    # styles in square brackets before and after what they are of
    drawn = (text.markup if mode == "colour" else text.plain) + "\n"
    path = GOLDEN / f"{name}-{layers}-{width}-{mode}.txt"
    if os.environ.get("BAYESLORA_RENEW_GOLDEN"):
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("layers", [12, 48])
@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("mode", MODES)
def test_drawings_keep_within_their_width(runs, layers, width, name, mode):
    """And what has no colours has no styles, what is ASCII nothing else."""
    text = view_of(runs, layers, name).draw(width=width, **MODES[mode])
    lines = text.plain.splitlines()
    # prose may wrap: the title, captions and notes, known by their commas
    assert max(len(line) for line in lines if "," not in line) <= width
    assert text.plain.replace("\n", "").isprintable()
    if mode != "colour":
        assert not text.spans
    if mode == "ascii":
        assert text.plain.isascii()
    if mode == "colour":
        assert not set(text.plain) & set(SHADES.strip()) or "scores" in name


@pytest.mark.parametrize("name", VIEWS)
def test_modes_say_the_same(runs, name):
    """In other shades: the words are equal."""

    def words(mode):
        plain = view_of(runs, 12, name).draw(width=400, **MODES[mode]).plain
        for shade in (*SHADES.strip(), "─", "-", "#", "±", "."):
            plain = plain.replace(shade, " ")
        return [
            line.split() for line in plain.splitlines() if not line.startswith(("rank", "step"))
        ]

    if "history" in name:  # the columns are as many as fit, so fewer beside shades
        assert words("ascii") == words("colour")
    else:
        assert words("ascii") == words("plain") == words("colour")


def test_panels_are_their_groups_one_after_the_other(runs):
    groups = tuple(load_group([runs / "12" / name]) for name in ("snr", "sensitivity"))
    view = Panels(groups=groups)
    alone = [Ranks(group=group) for group in groups]
    for mode in MODES.values():
        drawn = view.draw(width=80, **mode).plain
        assert drawn == "\n\n\n".join(one.draw(width=80, **mode).plain for one in alone)
    assert view.to_json() == {"panels": [one.to_json() for one in alone]}
    rows = list(view.rows())
    assert rows == [row for one in alone for row in one.rows()]
    assert {row["label"] for row in rows} == {"snr", "sensitivity"}


def test_constant_ranks_are_drawn(tmp_path):
    write_run(tmp_path / "lora", constant(allocation(names(2), init_rank=2, share=1)))
    text = Ranks(group=load_group([tmp_path / "lora"])).draw(width=80, colour=False, unicode=False)
    lines = text.plain.splitlines()
    assert lines[0] == "lora, 1 run, 100 steps, constant ranks"
    assert lines[3].split() == ["W_q", "2", "2", "4"]
    assert lines[-1] == "26 of 26 triplets kept (100%), mean rank 2.00 of 13 matrices"


def test_a_label_that_the_terminal_cannot_show(tmp_path):
    write_run(tmp_path / "Fünf", allocation(names(2)))
    view = Ranks(group=load_group([tmp_path / "Fünf"]))
    assert view.draw(width=80, colour=False, unicode=True).plain.startswith("Fünf, ")
    assert view.draw(width=80, colour=False, unicode=False).plain.startswith(r"F\xfcnf, ")


# ---- JSON and tables


@pytest.mark.parametrize("name", VIEWS)
def test_json_comes_back(runs, name):
    found = view_of(runs, 12, name).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", VIEWS)
def test_tables_are_rectangular(runs, name):
    rows = list(view_of(runs, 12, name).rows())
    assert len({tuple(row) for row in rows}) == 1
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    file.seek(0)
    back = list(csv.DictReader(file))
    assert back == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_the_table_says_what_the_reports_hold(runs):
    view = view_of(runs, 12, "mean")
    rows = list(view.rows())
    matrices = list(zip(*(report.matrices for report in view.group.reports), strict=True))
    assert len(rows) == len(matrices) == 73
    for row, of_runs in zip(rows, matrices, strict=True):
        ranks = [m.rank for m in of_runs]
        assert row["name"] == of_runs[0].name
        assert row["rank"] == pytest.approx(sum(ranks) / 3)
        assert (row["min"], row["max"], row["runs"]) == (min(ranks), max(ranks), 3)
        assert row["kept"][0] + row["kept"][-1] == "[]"  # or 110 would be read as a number
        parts = row["kept"][1:-1].split("|")
        assert [[c == "1" for c in part] for part in parts] == [list(m.kept) for m in of_runs]


def test_a_difference_in_json(runs):
    view = view_of(runs, 12, "difference")
    found = view.to_json()
    back = Difference(a=view.b, b=view.a).to_json()
    for row, other in zip(found["matrices"], back["matrices"], strict=True):
        assert row["difference"] == row["a"] - row["b"] == -other["difference"]
        assert (row["a_std"], row["b"]) == (other["b_std"], other["a"])
    assert found["agreement"]["a"]["pairs"] == 1
    assert found["agreement"]["b"]["pairs"] == 3
    assert found["agreement"]["between"]["pairs"] == 6


def test_one_run_has_no_deviation(runs):
    found = view_of(runs, 12, "run").to_json()
    assert found["agreement"] is None
    assert {m["std"] for m in found["matrices"]} == {None}


def test_widths_in_every_form(tmp_path):
    """Drawn beside the ranks, in JSON an entry a run, in the table a column an operand."""
    layer_names = names(2)
    for seed, width in ((1, 4), (2, 8)):
        report = allocation(layer_names, seed=seed, criterion="gates")
        quantized = tuple(replace(m, bits={"A": width, "x": 2}) for m in report.matrices)
        write_run(tmp_path / f"seed-{seed}", replace(report, matrices=quantized))
    view = Ranks(group=load_group([tmp_path]))
    first = view.to_json()["matrices"][0]
    assert first["bits"] == [{"A": 4, "x": 2}, {"A": 8, "x": 2}]
    assert first["mean_bits"] == 4
    row = next(iter(view.rows()))
    assert (row["mean_bits"], row["bits_A"], row["bits_x"]) == (4, 6, 2)
    assert "bits" not in row
    drawn = view.draw(width=200, **MODES["ascii"]).plain
    assert "mean width 4.00 bits of a matrix's operands; mean over 2 runs" in drawn
    assert drawn.splitlines()[2].split() == ["layer", "0", "1", "sum", "layer", "0", "1", "mean"]


def gated_run(path, width, seed=1):
    report = allocation(names(2), seed=seed, criterion="gates")
    bits = None if width is None else {"A": width, "x": 2}
    write_run(path, replace(report, matrices=tuple(replace(m, bits=bits) for m in report.matrices)))
    return load_group([path])


def test_differences_of_widths(tmp_path):
    """Where both have them; gates keep the first triplets: their places are not compared."""
    wide, narrow = gated_run(tmp_path / "a", 8), gated_run(tmp_path / "b", 4, seed=2)
    view = Difference(a=wide, b=narrow)
    found = view.to_json()
    for matrix in found["matrices"]:
        assert (matrix["a_bits"], matrix["b_bits"], matrix["bits_difference"]) == (5, 3, 2)
    assert found["agreement"]["between"]["in_common"] is None
    assert found["agreement"]["between"]["rank_correlation"] is not None
    assert next(iter(view.rows()))["bits_difference"] == 2
    drawn = view.draw(width=200, **MODES["ascii"]).plain
    assert "mean widths of a matrix's operands, A minus B" in drawn
    assert "+2.0" in drawn
    plain = Difference(a=wide, b=gated_run(tmp_path / "c", None))
    assert "a_bits" not in plain.to_json()["matrices"][0]
    assert "widths" not in plain.draw(width=200, **MODES["ascii"]).plain
