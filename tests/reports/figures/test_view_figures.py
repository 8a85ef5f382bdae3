"""Figures: files of the right kind, whole or not at all, with what the views hold."""

from __future__ import annotations

import re
from dataclasses import replace
from unittest import mock

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.figure_file import DPI
from bayeslora_cli.reports.figures.style import COLUMN, PAGE, RISING_MAP, STYLE, formula
from bayeslora_cli.reports.figures.view_figures import draw_figure, save_figure
from bayeslora_cli.reports.ranks.grids import difference_grid, mean_grid
from bayeslora_cli.reports.ranks.history_reading import load_history
from bayeslora_cli.reports.ranks.run_groups import load_group
from bayeslora_cli.reports.ranks.score_distribution import load_scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks
from tests.reports.ranks.test_score_distribution import with_scores
from tests.support.ranked_runs import (
    DECODER,
    allocation,
    constant,
    names,
    write_run,
    write_seeds,
)

GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
STARTS = {".png": b"\x89PNG\r\n\x1a\n", ".pdf": b"%PDF-", ".svg": b"<?xml "}
VIEWS = ("run", "mean", "difference", "history", "scores")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    for criterion in ("snr", "sensitivity"):
        write_seeds(path / criterion, names(2), criterion=criterion)
    write_seeds(path / "large", names(48, DECODER, pooler=False), init_rank=12)
    write_seeds(path / "twelve", names(12))
    write_seeds(path / "gpt2", names(2, GPT2))
    return path


@pytest.fixture
def view(runs, request):
    group = load_group([runs / "snr"])
    match request.param:
        case "run":
            return Ranks(group=load_group([runs / "snr" / "seed-2021"]))
        case "mean":
            return Ranks(group=group)
        case "difference":
            return Difference(a=load_group([runs / "sensitivity"]), b=group)
        case "history":
            return load_history(group)
        case "scores":
            return load_scores(group)


def texts(figure):
    """Everything written in a figure's axes: its cells and the names of rows and columns."""
    for axes in figure.axes:
        yield from (text.get_text() for text in axes.texts)
        yield from (text.get_text() for text in axes.get_xticklabels() + axes.get_yticklabels())


def overlaps(figure):
    """Pairs of texts that are drawn over each other, or beyond the figure's edges."""
    drawn = []
    draw = Text.draw

    def note(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        draw(text, renderer)

    with mock.patch.object(Text, "draw", note):  # a tick beyond its axis has a text, not drawn
        FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent().extents.tolist()) for text in drawn]
    left, bottom, right, top = figure.bbox.extents
    for i, (name, (x0, y0, x1, y1)) in enumerate(boxes):
        if x0 < left - 1 or x1 > right + 1:
            yield name, "left or right edge"
        if y0 < bottom - 1 or y1 > top + 1:
            yield name, "upper or lower edge"
        for other, (its_x0, its_y0, its_x1, its_y1) in boxes[:i]:
            width = min(x1, its_x1) - max(x0, its_x0)
            height = min(y1, its_y1) - max(y0, its_y0)
            if width > 1 and height > 2 and name != other:
                yield name, other


@pytest.mark.parametrize("view", VIEWS, indirect=True)
@pytest.mark.parametrize("suffix", STARTS)
def test_files_are_of_their_kind(view, suffix, tmp_path):
    path = tmp_path / "new" / f"figure{suffix}"
    save_figure(view, path)
    assert path.read_bytes().startswith(STARTS[suffix])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    save_figure(view, path)
    assert path.read_bytes() == first, "the same view gives the same file"
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.width == pytest.approx(COLUMN * DPI, abs=1)
            assert len(image.convert("RGB").getcolors(2**24)) > 20
    if suffix == ".svg":
        assert path.read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("view", VIEWS, indirect=True)
def test_nothing_is_drawn_over_anything_else(view):
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(view)
        assert list(overlaps(figure)) == []


@pytest.mark.parametrize(
    ("name", "width"), [("twelve", COLUMN), ("twelve/seed-2021", COLUMN), ("large", PAGE)]
)
def test_large_ones_neither(runs, name, width):
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(Ranks(group=load_group([runs / name])))
        assert list(overlaps(figure)) == []
    assert figure.get_size_inches()[0] == width


@pytest.mark.parametrize(
    ("paths", "width", "high"),
    [
        (["snr", "sensitivity"], 2 * COLUMN, 1),
        (["snr", "sensitivity", "magnitude"], 2 * COLUMN, 2),
        (["twelve", "sensitivity"], 2 * COLUMN, 1),
        (["large", "sensitivity"], PAGE, 2),
    ],
)
def test_panels(runs, tmp_path, paths, width, high):
    """Two beside each other where a page has room, in the same colours, nothing over anything."""
    write_seeds(tmp_path / "magnitude", names(2), criterion="magnitude")
    found = [runs / p if (runs / p).exists() else tmp_path / p for p in paths]
    groups = tuple(load_group([path]) for path in found)
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(Panels(groups=groups))
        assert list(overlaps(figure)) == []
        alone = [draw_figure(Ranks(group=group)) for group in groups]
    assert figure.get_size_inches()[0] == width
    heights = [one.get_size_inches()[1] for one in alone]
    beside = 1 if width == PAGE else 2
    rows = [max(heights[i : i + beside]) for i in range(0, len(heights), beside)]
    assert len(rows) == high
    assert figure.get_size_inches()[1] == pytest.approx(sum(rows))
    parts = [axes for one in alone for axes in one.axes]
    cells = [[t.get_text() for axes in every for t in axes.texts] for every in (parts, figure.axes)]
    assert cells[0] == cells[1]
    bars = [axes.get_ylim() for axes in figure.axes if axes.get_title(loc="left") == "rank"]
    assert len(bars) == len(groups)
    assert len(set(bars)) == 1


SMALL = {
    "encoder": names(2),
    "twelve": names(12),
    "decoder": names(48, DECODER, pooler=False),
    "gpt2": names(2, GPT2),
    "deep": names(90, DECODER[:1], pooler=False),
    "query": names(2, DECODER[:1], pooler=False),
    "missing": names(3)[1:],
    "pooler": ["pooler.dense"],
    "empty": names(2),
}


@pytest.mark.parametrize(
    ("name", "beside"), [*zip(SMALL, (8, 4, 1, 6, 1, 8, 7, 8, 8), strict=True)]
)
def test_many_panels_are_shades(tmp_path, name, beside):
    """As many in a row as there is room for, one scale, no numbers, nothing over anything."""
    write_seeds(tmp_path / name, SMALL[name], share=0 if name == "empty" else 2 / 3)
    group = load_group([tmp_path / name])
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(Panels(groups=(group,) * 13))
        assert list(overlaps(figure)) == []
    *panels, bar = sorted(figure.axes, key=lambda axes: axes.get_title(loc="left") == "rank")
    grid = mean_grid(group)
    top = max(grid.numbers) or 1
    assert bar.get_ylim() == (0, top)
    assert len(panels) == 13
    assert len({round(axes.get_position().y0, 4) for axes in panels}) == -(-13 // beside)
    assert not any(axes.texts for axes in figure.axes)
    assert figure.get_size_inches()[0] == PAGE
    assert " ".join(text.get_text() for text in figure.texts).count(f"{name} 3 runs") == 13
    blank = [np.nan] * max(1, len(grid.layers))
    cells = [[np.nan if value is None else value for value in row] for row in grid.values]
    cells += [blank] * bool(grid.outside) + [[value, *blank[1:]] for _, value in grid.outside]
    kinds = [*grid.kinds, *[""] * bool(grid.outside), *(kind for kind, _ in grid.outside)]
    ends = [str(layer) for layer in (*grid.layers[:1], *grid.layers[1:][-1:])]
    shades = ScalarMappable(Normalize(0, top), RISING_MAP).to_rgba(np.ma.masked_invalid(cells))
    for axes in panels:
        np.testing.assert_array_equal(axes.collections[0].get_facecolor(), shades.reshape(-1, 4))
        assert axes.yaxis_inverted()
        assert [t.get_text() for t in axes.get_yticklabels()] == [formula(kind) for kind in kinds]
        assert [t.get_text() for t in axes.get_xticklabels()] == ends


@pytest.mark.parametrize("load", [load_history, load_scores])
def test_nor_large_numbers(runs, load):
    """Thousands of triplets: the widest numbers beside an axis."""
    with matplotlib.rc_context(STYLE):
        assert list(overlaps(draw_figure(load(load_group([runs / "large"]))))) == []


@pytest.mark.parametrize("load", [lambda group: Ranks(group=group), load_history, load_scores])
def test_nor_long_names(runs, load):
    """Kinds that say where a matrix is, since its last name is not enough."""
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(load(load_group([runs / "gpt2"])))
        assert "mlp.c_proj" in texts(figure)
        assert list(overlaps(figure)) == []


def test_overlaps_are_seen():
    """What the tests above rest on."""
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.5, 0.5, "two")
    figure.text(0.99, 0.1, "beyond")
    assert set(overlaps(figure)) == {("two", "one"), ("beyond", "left or right edge")}


@pytest.mark.parametrize("view", ["run", "mean", "difference"], indirect=True)
def test_cells_are_the_grids(view):
    """Each number of the grid, as often as it is there, with the sums."""
    grid = mean_grid(view.group) if isinstance(view, Ranks) else difference_grid(
        view.a, view.b
    )  # fmt: skip
    with matplotlib.rc_context(STYLE):
        found = list(texts(draw_figure(view)))
    for kind in (*grid.kinds, *(kind for kind, _ in grid.outside)):
        assert formula(kind) in found
    wanted = [*grid.numbers, *grid.row_sums, *grid.column_sums, sum(grid.row_sums)]
    shown = [grid.number(value) for value in wanted]
    shown += [grid.deviation(v) for v in (grid.spread.numbers if grid.spread else ())]
    cells = sorted(text.replace("\N{MINUS SIGN}", "-") for text in found if "$" not in text)
    for text in shown:
        cells.remove(text)
    assert not any("." in text and re.fullmatch(r"[+-]\d.*", text) for text in cells)


@pytest.mark.parametrize("view", ["difference"], indirect=True)
def test_differences_are_centred_on_0(view):
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(view)
    low, high = figure.axes[1].get_ylim()
    assert low == -high < 0


def test_edges_of_what_can_be_drawn(tmp_path):
    """One matrix, outside the layers; ranks that are all 0; scores that are all 0."""
    alone = allocation(["pooler.dense"], share=1)
    nothing = with_scores(allocation(names(1)), [0.0] * 21, np.zeros(21, bool))
    for name, report in {"alone": alone, "nothing": nothing, "lora": constant(alone)}.items():
        write_run(tmp_path / name, report)
        group = load_group([tmp_path / name])
        save_figure(Ranks(group=group), tmp_path / f"{name}.png")
        save_figure(Difference(a=group, b=group), tmp_path / f"{name}.pdf")
        if name != "lora":
            save_figure(load_scores(group), tmp_path / f"{name}.svg")


# ---- faults


@pytest.mark.parametrize("view", ["run"], indirect=True)
def test_a_failure_leaves_the_old_figure(view, tmp_path, monkeypatch):
    def fail(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError, match=r"figure\.png: cannot be written: No space left"):
        save_figure(view, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("view", ["run"], indirect=True)
def test_a_directory_that_cannot_be_made(view, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_figure(view, tmp_path / "file" / "figure.png")


@pytest.mark.parametrize("view", ["run"], indirect=True)
def test_the_style_is_ours_alone(view, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(view, tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before


def test_widths_are_beside_ranks_and_below_their_course(tmp_path):
    """Weights' and activations' widths in colours of their own; nothing covers anything."""
    report = allocation(names(2), criterion="gates")
    bits = {"A": 8, "B": 8, "E": 8, "x": 4, "a": 4, "h": 4}
    report = replace(report, matrices=tuple(replace(m, bits=bits) for m in report.matrices))
    line = {
        "step": 3, "budget": report.budget,
        "ranks": {m.name: m.rank for m in report.matrices},
        "bits": {m.name: bits for m in report.matrices},
    }  # fmt: skip
    write_run(tmp_path / "a", report, [line])
    group = load_group([tmp_path / "a"])
    with matplotlib.rc_context(STYLE):
        ranks, both, course = (
            draw_figure(view)
            for view in (Ranks(group=group), Difference(a=group, b=group), load_history(group))
        )
        assert [list(overlaps(figure)) for figure in (ranks, both, course)] == [[], [], []]
    written = {text.get_text() for text in ranks.findobj(Text)}
    assert written >= {"bit widths of weights", "bit widths of activations", "8.0", "4.0", "mean"}
    bars = [[axes.get_title(loc="left") for axes in figure.axes] for figure in (ranks, course)]
    assert [titles.count("bits") for titles in bars] == [2, 1]
    assert [titles.count("rank") for titles in bars] == [1, 1]
    with matplotlib.rc_context(STYLE):
        two = draw_figure(Panels(groups=(group,) * 2))
        many = draw_figure(Panels(groups=(group,) * 5))
        assert list(overlaps(many)) == []
    width, height = ranks.get_size_inches()
    assert tuple(two.get_size_inches()) == (width, 2 * height)  # each begins a row
    assert len(many.axes) == 15 + 2
    bars = {axes.get_title(loc="left"): axes for axes in many.axes}
    assert bars["bits"].get_ylim() == (0, 8)
    assert bars["rank"].get_ylim() == (0, max(mean_grid(group).numbers))
    assert bars["bits"].get_position().y1 < bars["rank"].get_position().y0
    assert "mean widths of a matrix's operands, A minus B" in {
        text.get_text() for text in both.findobj(Text)
    }
