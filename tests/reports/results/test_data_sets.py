"""A column is one data set: by its content, not by its path."""

from __future__ import annotations

import pytest

from bayeslora_cli.reports.results.paired_test import compare
from bayeslora_cli.reports.results.rows import load_results
from bayeslora_cli.reports.results.table import Table
from tests.support.scored_runs import write_scored


def own(root, train, value, *, seed=1, checksum=None, rows=None, **typed):
    """A run on files of one's own."""
    more = {"data_sha256": checksum, "training_rows": rows}
    return write_scored(
        root, "custom", value, seed=seed, train_file=str(train), eval_file=str(train),
        more_result={name: v for name, v in more.items() if v is not None}, **typed,
    )  # fmt: skip


def columns(*paths):
    results = load_results(paths)
    return results.columns, {
        row.name: {name: (round(c.mean, 2), len(c.scores)) for name, c in row.cells.items()}
        for row in results.rows
    }


@pytest.mark.parametrize("kept", [True, False])
def test_files_of_different_content_are_never_averaged(tmp_path, kept):
    """0.4167 and 0.9667 became 69.17 ± 38.89, 2 seeds; with one seed a run was dropped."""
    for seed in (1, 2):
        own(tmp_path, "/a/news.csv", 0.4167, seed=seed, checksum="aa" if kept else None, rows=24)
        own(tmp_path, "/a/mail.csv", 0.9667, seed=seed, checksum="bb" if kept else None, rows=300)
    names, rows = columns(tmp_path)
    assert set(names) == {"news", "mail"}
    assert rows == {"adalora-ivon-snr-r2": {"news": (41.67, 2), "mail": (96.67, 2)}}


def test_the_same_content_elsewhere_is_the_same_data_set(tmp_path):
    own(tmp_path, "/a/news.csv", 0.4, seed=1, checksum="aa")
    own(tmp_path, "/b/moved.jsonl", 0.6, seed=2, checksum="aa", text_columns=("x",))
    names, rows = columns(tmp_path)
    assert len(names) == 1
    assert [found for row in rows.values() for found in row.values()] == [(50.0, 2)]


def test_the_same_path_with_other_content_is_another_data_set(tmp_path):
    own(tmp_path / "1", "/a/news.csv", 0.4, seed=1, checksum="aaaaaaaaaa")
    own(tmp_path / "2", "/a/news.csv", 0.6, seed=1, checksum="bbbbbbbbbb")
    names, rows = columns(tmp_path)
    assert set(names) == {"news.csv aaaaaaaa", "news.csv bbbbbbbb"}
    assert all(len(row) == 2 for row in rows.values())


def test_files_of_one_name_are_told_apart_by_their_directories(tmp_path):
    own(tmp_path, "/a/train.csv", 0.4, checksum="aa")
    own(tmp_path, "/b/train.csv", 0.6, checksum="bb")
    own(tmp_path, "/b/other.csv", 0.6, checksum="cc")
    assert set(columns(tmp_path)[0]) == {"a/train.csv", "b/train.csv", "other"}


def test_a_file_called_as_a_task_does_not_take_its_column(tmp_path):
    own(tmp_path, "/a/rte.csv", 0.4, checksum="aa")
    write_scored(tmp_path, "rte", 0.8)
    assert columns(tmp_path)[0] == ("rte", "rte.csv")


def test_a_file_called_as_a_group_of_tasks_has_one_column(tmp_path):
    own(tmp_path, "/a/all.csv", 0.4, checksum="aa")
    assert columns(tmp_path)[0] == ("all.csv",)


def test_a_run_without_a_checksum_joins_the_one_of_its_place(tmp_path):
    own(tmp_path, "/a/news.csv", 0.4, seed=1, checksum="aa", rows=24)
    own(tmp_path, "/a/news.csv", 0.6, seed=2, rows=24)
    own(tmp_path, "/a/news.csv", 0.9, seed=3, rows=300)
    _, rows = columns(tmp_path)
    (found,) = rows.values()
    assert sorted(found.values()) == [(50.0, 2), (90.0, 1)]


def test_another_directory_with_other_content_of_a_task_is_another_column(tmp_path):
    write_scored(tmp_path, "rte", 0.8, more_result={"data_sha256": "aa"})
    write_scored(tmp_path, "rte", 0.6, data="/", more_result={"data_sha256": "bb"})
    assert columns(tmp_path) == (
        ("rte", "rte /"), {"adalora-ivon-snr-r2": {"rte": (80.0, 1), "rte /": (60.0, 1)}}
    )  # fmt: skip


def test_the_number_of_rows_names_no_row(tmp_path):
    """Another number of rows gives another number of steps, which is no setting."""
    for name, steps in (("news", 3), ("mail", 38)):
        own(tmp_path, f"/a/{name}.csv", 0.5, checksum=name, schedule_steps=steps)
    assert [row.name for row in load_results([tmp_path]).rows] == ["adalora-ivon-snr-r2"]


def test_best_is_marked_within_a_data_set(tmp_path):
    for name, easy in (("news", 0.0), ("mail", 0.5)):
        own(tmp_path, f"/a/{name}.csv", 0.4 + easy, checksum=name)
        own(tmp_path, f"/a/{name}.csv", 0.3 + easy, checksum=name, method="lora", optimizer="adamw")
    marks = Table(results=load_results([tmp_path])).marks
    assert {key for key, mark in marks.items() if mark == "best"} == {
        ("adalora-ivon-snr-r2", "news"), ("adalora-ivon-snr-r2", "mail"),
    }  # fmt: skip


def test_pairs_are_of_one_data_set(tmp_path):
    own(tmp_path, "/a/news.csv", 0.9, checksum="aa", seed=1)
    own(tmp_path, "/a/mail.csv", 0.4, checksum="bb", seed=1, method="lora", optimizer="adamw")
    for seed in (2, 3):
        own(tmp_path, "/a/mail.csv", 0.5, checksum="bb", seed=seed)
        own(
            tmp_path, "/b/mail.csv", 0.4, checksum="bb", seed=seed, method="lora", optimizer="adamw"
        )
    lora, ivon = load_results([tmp_path]).rows
    found = compare(ivon, lora)
    assert found["pairs"] == 2
    assert found["tasks"].keys() == {"mail"}
    assert found["difference"] == pytest.approx(10)
