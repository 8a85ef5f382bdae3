"""The heatmap: what is drawn against the grid, colours, consoles."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from bayeslora_cli.reports.ranks.grids import PAPER_KINDS, Grid, bit_grid, rank_grid
from bayeslora_cli.reports.ranks.heatmap import beside, draw_grid, heatmap, print_heatmap
from bayeslora_cli.reports.terminal_shading import RAMP, SHADES
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport

TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
KINDS = (*PAPER_KINDS, "W_gate", "in_proj", "x")


def matrix(kind, layer, rank, init_rank=None):
    size = max(rank, init_rank or 0)
    return MatrixReport(
        name=f"{layer}.{kind}", layer=layer, kind=kind, in_features=8, out_features=8,
        init_rank=size, rank=rank, kept=tuple(i < rank for i in range(size)), scores=None,
    )  # fmt: skip


def report(matrices):
    budget = sum(m.rank for m in matrices)
    return RankReport(step=9, budget=budget, criterion="snr", matrices=tuple(matrices))


def full_report(layers, kinds=PAPER_KINDS, rank=lambda kind, layer: layer % 12):
    return report([matrix(k, layer, rank(k, layer), 12) for layer in range(layers) for k in kinds])


reports = st.lists(
    st.builds(
        matrix,
        st.sampled_from([*KINDS, "W_pool"]),
        st.none() | st.integers(0, 60),
        st.integers(0, 300),
        st.integers(1, 300),
    ),
    max_size=60,
).map(report)


# ---- the drawing, read back


def read(text, grid):
    """Numbers of a drawing: (cells, sums by row, sums by column, outside, grand total)."""
    cells, rows, columns, outside, layers, total = {}, {}, {}, {}, [], None
    for line in re.sub(f"[{SHADES.strip()}]", " ", text).splitlines()[:-1]:
        name, *words = line.split() or [""]
        if name == "layer":
            last = words[-1] == "sum"
            layers = [int(w) for w in (words[:-1] if last else words)]
        elif name == "sum":
            *values, total = words if last else [*words, total]
            columns |= dict(zip(layers, map(float, values), strict=True))
        elif name in grid.kinds and layers:
            *values, rows[name] = words if last else [*words, None]
            found = [None if v == "-" else float(v) for v in values]
            cells |= {(name, n): v for n, v in zip(layers, found, strict=True)}
        elif name == "":
            layers = []
        elif name != "rank":
            outside[name] = float(words[0])
    return cells, {k: float(v) for k, v in rows.items()}, columns, outside, total


@settings(max_examples=80, deadline=None)
@given(reports, st.integers(40, 220), st.booleans(), st.booleans())
def test_the_drawing_says_what_the_grid_holds(ranks, width, colour, unicode):
    grid = rank_grid(ranks)
    text = heatmap(ranks, width=width, colour=colour, unicode=unicode).plain
    cells, rows, columns, outside, total = read(text, grid)
    assert outside == dict(grid.outside)
    assert cells == {
        (kind, layer): value
        for kind, row in zip(grid.kinds, grid.values, strict=True)
        for layer, value in zip(grid.layers, row, strict=True)
    }
    assert rows == {k: sum(v or 0 for v in r) for k, r in zip(grid.kinds, grid.values, strict=True)}
    assert list(columns) == list(grid.layers)
    for layer in grid.layers:
        assert columns[layer] == sum(cells[kind, layer] or 0 for kind in grid.kinds)
    assert total is None or float(total) == sum(rows.values())
    assert text.splitlines()[-1] == grid.caption


@settings(max_examples=80, deadline=None)
@given(reports, st.integers(40, 220), st.booleans(), st.booleans())
def test_a_drawing_is_within_its_width(ranks, width, colour, unicode):
    """But for the caption, which is prose and may wrap."""
    lines = heatmap(ranks, width=width, colour=colour, unicode=unicode).plain.splitlines()[:-1]
    assert max(map(len, lines), default=0) <= width
    if not colour:
        assert all(line == line.rstrip() for line in lines)
    if not unicode:
        assert all(line.isascii() for line in lines)


@pytest.mark.parametrize(
    ("layers", "width", "blocks"),
    [(6, 80, [6]), (12, 80, [12]), (48, 80, [16] * 3), (48, 200, [48]), (33, 80, [17, 16])],
)
def test_blocks_of_layers_are_about_as_wide(layers, width, blocks):
    lines = heatmap(full_report(layers), width=width, colour=True, unicode=True).plain.splitlines()
    heads = [line.removesuffix("sum").split()[1:] for line in lines if line.startswith("layer")]
    assert [len(head) for head in heads] == blocks
    assert [int(n) for head in heads for n in head] == list(range(layers))
    assert [line.endswith("sum") for line in lines if line.startswith("layer")] == [
        *[False] * (len(blocks) - 1),
        True,
    ]


def test_columns_are_aligned():
    """Every number ends where its layer's number ends."""
    lines = heatmap(full_report(12), width=80, colour=False, unicode=False).plain.splitlines()
    table = lines[: len(PAPER_KINDS) + 2]
    assert len({tuple(m.end() for m in re.finditer(r"\d+|sum$", x[6:])) for x in table}) == 1


def test_means_have_a_decimal():
    grid = Grid(
        kinds=("W_q", "W_k"), layers=(0, 1), values=((1.5, 2.0), (0.25, None)),
        outside=(("W_pool", 1.0),), caption="mean of 4 runs",
    )  # fmt: skip
    lines = draw_grid(grid, width=80, colour=False, unicode=False).plain.splitlines()
    assert [line.split() for line in lines] == [
        ["layer", "0", "1", "sum"],
        ["W_q", "1.5", "2.0", "3.5"],
        ["W_k", "0.2", "-", "0.2"],
        ["sum", "1.8", "2.0", "3.8"],
        [],
        ["W_pool", "1.0"],
        ["mean", "of", "4", "runs"],
    ]


numbers = st.integers(-999, 999).map(lambda n: n / 10)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.none() | numbers, min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(numbers, max_size=2),
    st.booleans(),
    st.booleans(),
)
def test_differences_and_deviations_are_told(rows, others, colour, unicode):
    """Signs before the numbers, and below each the deviation."""
    form = {
        "kinds": KINDS[: len(rows)],
        "layers": (0, 1, 2),
        "outside": tuple(zip(("W_pool", "head"), others, strict=False)),
        "caption": "",
    }
    deviations = tuple(tuple(v if v is None else abs(v) / 2 for v in row) for row in rows)
    grid = Grid(**form, values=tuple(map(tuple, rows)), signed=True)
    with_spread = Grid(
        **form | {"outside": tuple((kind, abs(v) / 2) for kind, v in form["outside"])},
        values=deviations,
    )
    grid = replace(grid, spread=with_spread)
    text = draw_grid(grid, width=80, colour=colour, unicode=unicode).plain
    text = re.sub(f"[{SHADES.strip()}]", " ", text)
    assert max(map(len, text.splitlines())) <= 80
    below = [line.split()[1:] for line in text.splitlines() if line.startswith(" std")]
    assert below == [
        *([f"{v:.1f}" for v in row if v is not None] for row in deviations),
        *([f"{v:.1f}"] for _, v in with_spread.outside),
    ]
    for kind, row in zip(grid.kinds, grid.values, strict=True):
        (line,) = (x.split() for x in text.splitlines() if x.startswith(f"{kind} "))
        shown = ["-" if v is None else f"{v:+.1f}" if v else "0.0" for v in row]
        assert line[1:4] == shown
        assert float(line[4]) == pytest.approx(sum(v or 0 for v in row), abs=0.051)


def test_nothing_adapted():
    """Full fine-tuning; and only a matrix outside the layers."""
    assert heatmap(report([]), width=80, colour=True, unicode=True).plain == "no adapted matrices"
    alone = heatmap(report([matrix("W_pool", None, 2, 3)]), width=80, colour=False, unicode=False)
    assert alone.plain.splitlines()[0].split() == ["W_pool", "2"]


@pytest.mark.parametrize("colour", [False, True])
def test_everything_pruned(colour):
    ranks = full_report(3, rank=lambda kind, layer: 0)
    text = heatmap(ranks, width=80, colour=colour, unicode=True)
    assert not set(text.plain) & set(SHADES.strip())
    assert "0 of 216 triplets kept (0%), mean rank 0.00" in text.plain


# ---- shades


def shades_of(text):
    """Background and number of each cell of a coloured drawing."""
    for span in text.spans:
        if " on " in str(span.style):
            yield str(span.style).split(" on ")[1], text.plain[span.start : span.end]


@settings(max_examples=60, deadline=None)
@given(reports)
def test_a_larger_rank_is_never_darker(ranks):
    grid = rank_grid(ranks)
    order = [background for background, _ in RAMP]
    shades = list(shades_of(heatmap(ranks, width=200, colour=True, unicode=True)))
    found = sorted((float(number), order.index(shade)) for shade, number in shades)
    shown = [v for row in grid.values for v in row if v is not None]
    assert len(found) == len(shown) + len(grid.outside)
    assert [shade for _, shade in found] == sorted(shade for _, shade in found)
    assert all((shade == 0) == (number == 0) for number, shade in found)
    if ranks.budget:
        assert found[-1][1] == len(RAMP) - 1


@settings(max_examples=60, deadline=None)
@given(reports)
def test_characters_shade_as_colours_do(ranks):
    text = heatmap(ranks, width=200, colour=False, unicode=True)
    assert not text.spans
    assert not text.style
    lines = [x for x in text.plain.splitlines()[:-1] if not x.startswith("rank")]
    pairs = [(int(n), SHADES.index(s)) for x in lines for n, s in re.findall(r"(\d+)([░▒▓█])", x)]
    cells = [m for row in rank_grid(ranks).values for m in row]
    cells += [v for _, v in rank_grid(ranks).outside]
    assert sorted(n for n, _ in pairs) == sorted(v for v in cells if v)
    assert [s for _, s in sorted(pairs)] == sorted(s for _, s in pairs)


# ---- consoles


def printed(*, encoding="utf-8", environ=TERMINAL, **options):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_heatmap(full_report(12), Console(file=file, width=80, _environ=environ, **options))
    file.seek(0)
    return file.read()


PLAIN = heatmap(full_report(12), width=80, colour=False, unicode=True).plain + "\n"
ASCII = heatmap(full_report(12), width=80, colour=False, unicode=False).plain + "\n"


@pytest.mark.parametrize("system", ["truecolor", "256"])
def test_terminals_get_colours(system):
    # rich keeps the codes of the first system that a style was printed in: 2 or 5, by the order
    assert re.search(r"48;[25];", printed(force_terminal=True, color_system=system))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"force_terminal": True, "environ": {**TERMINAL, "NO_COLOR": "1"}},
        {"force_terminal": True, "environ": {"TERM": "dumb"}},
        {"force_terminal": True, "environ": {"TERM": "xterm"}},
    ],
    ids=["pipe", "NO_COLOR", "dumb", "16 colours"],
)
def test_others_get_plain_lines(options):
    assert printed(**options) == PLAIN


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_other_encodings_get_ascii(encoding):
    assert printed(encoding=encoding) == ASCII
    assert printed(encoding=encoding, force_terminal=True).isascii()


# ---- bit widths


DIGITS = {"colour": False, "unicode": False}


def quantized(*widths):
    """W_q and W_v of two layers and a pooler, each with two operands of the given widths."""
    places = [("W_q", 0), ("W_q", 1), ("W_v", 0), ("W_v", 1), ("W_pool", None)]
    return report(
        [
            replace(matrix(kind, layer, 2, 3), bits={"A": a, "x": b})
            for (kind, layer), (a, b) in zip(places, widths, strict=True)
        ]
    )


WIDTHS = quantized((2, 2), (4, 8), (16, 16), (2, 4), (8, 8))


def test_ranks_and_widths_side_by_side():
    """Where there is room, else one below the other; neither loses a line."""
    wide = heatmap(WIDTHS, width=120, **DIGITS).plain.splitlines()
    narrow = heatmap(WIDTHS, width=60, **DIGITS).plain.splitlines()
    ranks = draw_grid(rank_grid(WIDTHS), width=60, **DIGITS).plain.splitlines()
    bits = draw_grid(bit_grid([WIDTHS]), width=60, **DIGITS).plain.splitlines()
    assert narrow == [*ranks, "", *bits]
    assert len(wide) == max(len(ranks), len(bits))
    at = wide[0].index("layer", 1)
    assert [line[:at].rstrip() for line in wide] == ranks
    assert [line[at:] for line in wide if line[at:]] == [line for line in bits if line]
    assert max(map(len, wide)) <= 120


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab ", max_size=9), min_size=1, max_size=5),
    st.lists(st.text("cd ", max_size=9), min_size=1, max_size=5),
    st.integers(1, 40),
)
def test_beside_never_exceeds_the_width_unless_one_does(left, right, width):
    texts = [Text("\n".join(lines)) for lines in (left, right)]
    lines = beside(*texts, width).plain.split("\n")
    widest = max(max(len(line) for line in part.plain.split("\n")) for part in texts)
    assert max(map(len, lines)) <= max(width, widest)
    found = re.sub(r"\s", "", "".join(sorted("".join(lines))))
    assert found == re.sub(r"\s", "", "".join(sorted("".join(left + right))))
