"""Heatmaps of many methods: tasks are rows, methods are columns."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.reports.figures.small_multiples import rows_of
from bayeslora_cli.reports.figures.style import COLUMN, PAGE, RISING_MAP, STYLE
from bayeslora_cli.reports.figures.view_figures import draw_figure
from bayeslora_cli.reports.ranks.grids import mean_grid
from bayeslora_cli.reports.ranks.run_groups import in_order, load_groups
from bayeslora_cli.reports.ranks.views import Panels
from bayeslora_cli.runs.directory import run_name
from tests.reports.figures.test_view_figures import overlaps
from tests.support.ranked_runs import allocation, constant, names, write_run

LORA = {"method": "lora"}
ADAMW = {"optimizer": "adamw", "epochs": 2.0}  # whose directory's name has a hash
SNR, SENSITIVITY = {"criterion": "snr"}, {"criterion": "sensitivity"}
OTHERS = [{"criterion": name} for name in ("snr-abs", "magnitude", "precision")]
TITLES = {
    "LoRA + AdamW", "AdaLoRA + AdamW, sensitivity", "AdaLoRA + IVON, sensitivity",
    "AdaLoRA + IVON, snr",
}  # fmt: skip


def write(root, tasks, rows, layers=12, seeds=(1, 2)):
    """Runs of all tasks and rows; groups as they are read."""
    for number, (task, row, seed) in enumerate(
        (task, row, seed) for task in tasks for row in rows for seed in seeds
    ):
        resolved = resolve({"task": task, "seed": seed, **row})
        criterion = resolved.config.criterion
        report = allocation(names(layers), seed=number, criterion=criterion or "snr")
        report = report if criterion else constant(report)
        write_run(root / run_name(resolved), report, config=to_toml(resolved.config))
    return load_groups([root])


def draw(groups):
    with matplotlib.rc_context(STYLE):
        figure = draw_figure(Panels(groups=groups))
        assert list(overlaps(figure)) == []
    assert figure.get_size_inches()[0] in (PAGE, 2 * COLUMN)
    return figure


def written(figure):
    return [text.get_text() for text in figure.texts]


def panels(figure):
    """Heatmaps, by their places from the upper left on."""
    found = [axes for axes in figure.axes if axes.get_title(loc="left") != "rank"]
    return sorted(found, key=lambda a: (-round(a.get_position().y0, 3), a.get_position().x0))


def test_tasks_are_rows_and_methods_are_columns(tmp_path):
    groups = write(tmp_path, ("rte", "mrpc", "cola"), (SNR, SENSITIVITY, ADAMW, LORA))
    figure = draw(groups)
    words = written(figure)
    assert words[0] == "ranks, mean over 2 runs"
    assert set(words[1:5]) == TITLES
    assert words[5:] == ["CoLA", "MRPC", "RTE"]
    drawn = panels(figure)
    assert len(drawn) == 12
    assert len({round(axes.get_position().x0, 4) for axes in drawn}) == 4
    grids = [mean_grid(group) for group in in_order(groups)]
    colours = ScalarMappable(Normalize(0, max(max(g.numbers) for g in grids)), RISING_MAP)
    for axes, grid in zip(drawn, grids, strict=True):
        cells = np.ma.masked_invalid([row for _, row in rows_of(grid)])
        shades = colours.to_rgba(cells).reshape(-1, 4)
        np.testing.assert_array_equal(axes.collections[0].get_facecolor(), shades)
    named = [bool(axes.get_yticks().size) for axes in drawn]
    assert named == [True, False, False, False] * 3


def test_nothing_is_said_twice_and_no_hash(tmp_path):
    groups = write(tmp_path, ("rte", "mrpc"), (SNR, SENSITIVITY, ADAMW))
    drawn = Panels(groups=groups).draw(width=100, colour=False, unicode=True).plain
    heads = [line for line in drawn.splitlines() if " runs, " in line]
    assert heads == [
        f"{task}, {method}, 2 runs, 100 steps"
        for task in ("MRPC", "RTE")
        for method in (
            "AdaLoRA + AdamW, sensitivity", "AdaLoRA + IVON, sensitivity", "AdaLoRA + IVON, snr"
        )
    ]  # fmt: skip
    (hashed,) = {g.label.rpartition("-")[2] for g in groups if "adamw" in g.label}
    assert len(hashed) == 8
    for text in ("\n".join(written(draw(groups))), drawn):
        assert hashed not in text
        assert "criterion" not in text


def test_a_method_need_not_have_all_tasks(tmp_path):
    write(tmp_path, ("rte",), (SNR, ADAMW))
    assert len(panels(draw(write(tmp_path, ("cola",), (SNR, LORA))))) == 4


@pytest.mark.parametrize("layers", [2, 12, 32])
def test_more_methods_than_a_page_has_room_for(tmp_path, layers):
    rows = (SNR, SENSITIVITY, ADAMW, LORA, *OTHERS)
    figure = draw(write(tmp_path, ("rte", "mrpc"), rows, layers=layers, seeds=(1,)))
    assert len(panels(figure)) == 14
    blocks = [text for text in written(figure) if text == "RTE"]
    assert len(blocks) == {2: 1, 12: 2, 32: 4}[layers]


def test_two_methods_keep_their_numbers(tmp_path):
    """Two beside each other are a task; so are the methods of one task, below each other."""
    figure = draw(write(tmp_path, ("rte", "mrpc"), (SNR, ADAMW)))
    assert [text for text in written(figure) if " + " in text] == [
        "MRPC, AdaLoRA + AdamW, sensitivity", "MRPC, AdaLoRA + IVON, snr",
        "RTE, AdaLoRA + AdamW, sensitivity", "RTE, AdaLoRA + IVON, snr",
    ]  # fmt: skip
    assert any(axes.texts for axes in figure.axes)
    one = draw(write(tmp_path / "one", ("rte",), (SNR, SENSITIVITY, ADAMW)))
    assert any(axes.texts for axes in one.axes)


def test_bit_widths_have_a_grid_of_their_own(tmp_path):
    bits = {"A": 8, "B": 8, "E": 8, "x": 4, "a": 4, "h": 4}
    groups = []
    for group in write(tmp_path, ("rte", "mrpc"), (SNR, LORA, {"method": "blora"})):
        reports = group.reports
        if "B-LoRA" in group.heading:
            reports = tuple(
                replace(r, matrices=tuple(replace(m, bits=bits) for m in r.matrices))
                for r in reports
            )
        groups.append(replace(group, reports=reports))
    figure = draw(tuple(groups))
    assert [text for text in written(figure) if "mean over 2 runs" in text] == [
        "ranks, mean over 2 runs",
        "bit widths of weights, mean over 2 runs",
        "bit widths of activations, mean over 2 runs",
    ]
    assert written(figure).count("B-LoRA + AdamW") == 3
    assert written(figure).count("LoRA + AdamW") == 1
    assert [axes.get_title(loc="left") for axes in figure.axes].count("bits") == 1
