"""A row's model is its weights, wherever they lie."""

from __future__ import annotations

from bayeslora_cli.reports.results.rows import load_results
from tests.support.scored_runs import write_scored


def rows(path):
    """Seeds by name of row."""
    return {
        row.name: sorted(seed for cell in row.cells.values() for seed in cell.scores)
        for row in load_results([path]).rows
    }


def run(tmp_path, seed, model, weights):
    write_scored(tmp_path / str(seed), "rte", 0.8, seed=seed, model=model, weights=weights)


def test_a_model_that_has_moved_is_one_row(tmp_path):
    run(tmp_path, 1, "/old/minilm", "aa")
    run(tmp_path, 2, "/new/minilm", "aa")
    run(tmp_path, 3, "/old/minilm", None)  # from before checksums
    assert rows(tmp_path) == {"adalora-ivon-snr-r2": [1, 2, 3]}


def test_other_weights_at_the_same_path_are_another_row(tmp_path):
    run(tmp_path, 1, "/a/minilm", "aaaaaaaaaa")
    run(tmp_path, 2, "/a/minilm", "bbbbbbbbbb")
    run(tmp_path, 3, "/a/minilm", None)
    assert rows(tmp_path) == {
        "adalora-ivon-snr-r2 model=/a/minilm aaaaaaaa": [1],
        "adalora-ivon-snr-r2 model=/a/minilm bbbbbbbb": [2],
        "adalora-ivon-snr-r2 model=/a/minilm": [3],
    }
