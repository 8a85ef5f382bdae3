"""Runs put together by method row and task: never a mean over different settings."""

from __future__ import annotations

import json
import shutil
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.results.outcomes import GROUPS, tasks_of
from bayeslora_cli.reports.results.rows import Cell, load_results
from tests.support.scored_runs import ROWS, SEEDS, TASKS, score, write_scored, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("runs"))


def names(results):
    return [row.name for row in results.rows]


def test_rows_are_the_papers_and_in_its_order(sweep):
    results = load_results([sweep])
    assert names(results) == [
        "full-adamw", "lora-adamw-r2", "adalora-adamw-sensitivity-r2", "adalora-ivon-snr-r2",
    ]  # fmt: skip
    assert results.columns == ("cola", "stsb", "mrpc", "rte", "group2")
    assert [row.seeds for row in results.rows] == [(3, 3)] * 4


def test_means_and_deviations_over_seeds(sweep):
    for key, row in zip(ROWS, load_results([sweep]).rows, strict=True):
        for task in TASKS:
            scores = [100 * score(key, task, seed) for seed in SEEDS]
            assert row.cells[task].mean == pytest.approx(fmean(scores))
            assert row.cells[task].std == pytest.approx(stdev(scores))
            assert list(row.cells[task].scores) == list(SEEDS)
        by_seed = [fmean(100 * score(key, task, seed) for task in TASKS) for seed in SEEDS]
        assert row.cells["group2"].mean == pytest.approx(fmean(by_seed))
        assert row.cells["group2"].std == pytest.approx(stdev(by_seed))


def test_groups_only_where_they_are_complete(tmp_path):
    for task in GROUPS["group1"]:
        write_scored(tmp_path, task, 0.9)
    for task in GROUPS["group2"][1:]:
        write_scored(tmp_path, task, 0.8)
    (row,) = load_results([tmp_path]).rows
    assert row.cells.keys() == {*GROUPS["group1"], *GROUPS["group2"][1:], "group1"}
    write_scored(tmp_path, "cola", 0.6)
    (row,) = load_results([tmp_path]).rows
    assert row.cells["group2"].mean == pytest.approx(75)
    assert row.cells["all"].mean == pytest.approx((4 * 90 + 3 * 80 + 60) / 8)


def test_a_group_of_different_seeds_has_a_mean_and_no_deviation(tmp_path):
    for task in GROUPS["group2"]:
        write_scored(tmp_path, task, 0.8, seed=1)
        write_scored(tmp_path, task, 0.9, seed=2)
    write_scored(tmp_path, "rte", 0.9, seed=3)
    (row,) = load_results([tmp_path]).rows
    group = row.cells["group2"]
    assert (group.std, group.scores) == (None, {})
    assert group.mean == pytest.approx(fmean([85, 85, 85, 260 / 3]))
    assert row.seeds == (2, 3)


def test_the_evaluation_that_counts(tmp_path):
    write_scored(tmp_path, "rte", 0.8, best=0.9)
    means = {at: load_results([tmp_path], at).rows[0].cells["rte"].mean
             for at in ("best_at_budget", "best", "last")}  # fmt: skip
    assert means == pytest.approx({"best_at_budget": 80, "best": 90, "last": 79})


# ---- settings


def test_presets_of_tasks_do_not_part_a_row(tmp_path):
    """Nor does what was typed for one task alone."""
    write_scored(tmp_path, "rte", 0.8, lr=3.0)
    write_scored(tmp_path, "mrpc", 0.8, data="/")
    write_scored(tmp_path, "cola", 0.5, epochs=7.0)
    (row,) = load_results([tmp_path]).rows
    assert row.name == "adalora-ivon-snr-r2"


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"lr": 3.0}, "lr=3.0"),
        ({"lr": 3.0, "precision": "bf16"}, "lr=3.0 precision=bf16"),
        ({"target_modules": ("a", "b")}, "target_modules=a,b"),
        ({"t_init": 7, "seed": 5}, "t_init=7"),
        ({"max_length": 64, "seed": 5}, "max_length=64"),
    ],
)
def test_other_settings_on_one_task_are_another_row(tmp_path, other, name):
    """The other tasks stay with the row of the presets."""
    write_scored(tmp_path / "a", "rte", 0.8)
    write_scored(tmp_path / "a", "mrpc", 0.7)
    write_scored(tmp_path / "b", "rte", 0.6, **other)
    usual, found = load_results([tmp_path]).rows
    assert usual.name == "adalora-ivon-snr-r2"
    assert {task: cell.mean for task, cell in usual.cells.items()} == {"mrpc": 70, "rte": 80}
    assert found.name == f"adalora-ivon-snr-r2 {name}"
    assert {task: cell.mean for task, cell in found.cells.items()} == {"rte": 60}


def test_a_grid_has_a_row_for_each_of_its_values(tmp_path):
    """Though 0.5 is RTE's preset and 0.4 is CoLA's."""
    for task in ("rte", "cola"):
        for lr in (0.4, 0.5):
            write_scored(tmp_path, task, 0.7, lr=lr)
    results = load_results([tmp_path])
    assert names(results) == ["adalora-ivon-snr-r2 lr=0.4", "adalora-ivon-snr-r2 lr=0.5"]
    assert [set(tasks_of(row.outcomes)) for row in results.rows] == [{"rte", "cola"}] * 2


def test_a_files_preset_is_known_without_the_file(tmp_path):
    """The run says what kind its rows are of, so that its own preset's values name no row."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    own = {"method": "lora", "rank": 8}
    for more in ({}, {"batch_size": 4, "lr": 30.0}):
        write_scored(tmp_path / "runs", "arc-easy", 0.6, **own, **more)
    write_scored(tmp_path / "runs", "custom", 0.5, kind="causal", train_file=str(chats), **own)
    chats.unlink()
    rows = load_results([tmp_path / "runs"]).rows
    assert [row.name for row in rows] == ["lora-ivon-r8", "lora-ivon-r8 batch_size=4 lr=30.0"]
    assert list(rows[0].cells) == ["arc-easy", "chats"]


def test_settings_of_a_kind_tell_its_rows_apart(tmp_path, caplog):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"anchor": "a", "positive": "b"}\n' * 4)
    for value in (0.02, 0.05):
        more = {"train_file": str(pairs), "temperature": value}
        same = {"data_sha256": "aa"}
        write_scored(tmp_path / "runs", "custom", 0.5, kind="embedding", more_result=same, **more)
    assert names(load_results([tmp_path / "runs"])) == [
        "adalora-ivon-snr-r2 temperature=0.02", "adalora-ivon-snr-r2 temperature=0.05",
    ]  # fmt: skip
    assert not caplog.text


def test_the_same_seed_on_other_data_is_another_row(tmp_path):
    write_scored(tmp_path, "rte", 0.8)
    write_scored(tmp_path, "rte", 0.6, data="/")
    assert names(load_results([tmp_path])) == [
        "adalora-ivon-snr-r2", "adalora-ivon-snr-r2 data=/",
    ]  # fmt: skip


def test_data_elsewhere_with_other_seeds_is_the_same_row(tmp_path):
    write_scored(tmp_path, "rte", 0.8, seed=1, data="/")
    write_scored(tmp_path, "rte", 0.8, seed=2, data=str(tmp_path))
    (row,) = load_results([tmp_path]).rows
    assert row.seeds == (2, 2)


def test_models_are_never_put_together(tmp_path):
    write_scored(tmp_path, "rte", 0.8, model="a/b")
    write_scored(tmp_path, "mrpc", 0.8, model="c/d")
    assert names(load_results([tmp_path])) == [
        "adalora-ivon-snr-r2 model=a/b", "adalora-ivon-snr-r2 model=c/d",
    ]  # fmt: skip


def test_a_copy_counts_once(tmp_path, caplog):
    run = write_scored(tmp_path, "rte", 0.8)
    shutil.copytree(run.path, tmp_path / "z" / "copy")
    (row,) = load_results([tmp_path, run.path, tmp_path / "z"]).rows
    assert row.seeds == (1, 1)
    assert f"copy is left out: it repeats {run.path}" in caplog.text


@given(st.lists(st.tuples(
    st.sampled_from(["rte", "mrpc"]), st.integers(1, 3), st.sampled_from([None, 1.0, 2.0]),
    st.sampled_from([None, 5]),
), unique=True, min_size=1, max_size=8))  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_nothing_is_lost_and_nothing_mixed(tmp_path_factory, points):
    """Of a task a row has one setting, each seed once; each run is in one row."""
    root = tmp_path_factory.mktemp("runs")
    for task, seed, lr, t_init in points:
        typed = {"lr": lr, "t_init": t_init}
        typed = {name: value for name, value in typed.items() if value is not None}
        write_scored(root, task, 0.5, seed=seed, **typed)
    rows = load_results([root]).rows
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    assert len({outcome.run.path for outcome in outcomes}) == len(outcomes) == len(points)
    for row in rows:
        for task in tasks_of(row.outcomes):
            found = [o.config for o in row.outcomes if o.task == task]
            assert len({(c.lr, c.t_init) for c in found}) == 1
            assert len({c.seed for c in found}) == len(found)
    assert len({row.name for row in rows}) == len(rows)


# ---- faults


def test_unfinished_runs_are_left_out_with_a_word(tmp_path, caplog):
    write_scored(tmp_path, "rte", 0.8, seed=1)
    unfinished = write_scored(tmp_path, "rte", 0.8, seed=2)
    unfinished.result.unlink()
    (row,) = load_results([tmp_path]).rows
    assert list(row.cells["rte"].scores) == [1]
    assert "seed-2 is left out: the run has not finished" in caplog.text
    with pytest.raises(RunDirError, match="has not finished"):
        load_results([unfinished.path])


def test_corrupt_runs_are_left_out_with_a_word(tmp_path, caplog):
    write_scored(tmp_path, "rte", 0.8, seed=1)
    corrupt = write_scored(tmp_path, "rte", 0.8, seed=2), write_scored(tmp_path, "rte", 0.8, seed=3)
    corrupt[0].result.write_text("{")
    corrupt[1].config.write_text("x =")
    (row,) = load_results([tmp_path]).rows
    assert list(row.cells["rte"].scores) == [1]
    for run, name in zip(corrupt, ("result.json", "config.toml"), strict=True):
        assert f"{run.path} is left out: {run.path / name} is" in caplog.text
        with pytest.raises(UserError, match=name):
            load_results([run.path])


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunDirError, match="no finished run below"):
        load_results([tmp_path])
    with pytest.raises(RunDirError, match="no such directory"):
        load_results([tmp_path / "x"])


@pytest.mark.parametrize("entry", [None, {}, {"value": None}, {"value": "1"}, [1]])
def test_a_result_without_its_value_is_named(tmp_path, entry):
    run = write_scored(tmp_path, "rte", 0.8)
    result = json.loads(run.result.read_text())
    run.result.write_text(json.dumps({**result, "best": entry}))
    run.checksums.unlink()
    with pytest.raises(RunDirError, match=r"result\.json is corrupt: best has no value"):
        load_results([tmp_path], "best")


def test_one_seed_has_no_deviation():
    assert Cell(scores={1: 2.0}, mean=2.0).std is None
