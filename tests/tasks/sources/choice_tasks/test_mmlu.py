"""MMLU from csv files."""

from __future__ import annotations

import csv

import pytest

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.choice_tasks.mmlu import GROUPS, find_folder, group_of, read_split
from tests.tasks.sources.choice_tasks.files import write_mmlu


def test_splits_subjects_and_groups(tmp_path):
    folder = find_folder(write_mmlu(tmp_path), "mmlu")
    found = read_split(folder, "validation")
    assert [q.group for q in found] == ["stem/astronomy"] * 3 + ["humanities/philosophy"] * 3
    assert (found[1].text, found[1].choices, found[1].answer) == (
        "val w1, astronomy?", ("w1", "w2", "w3", "w4"), 1,
    )  # fmt: skip
    assert len(read_split(folder, "dev")) == len(read_split(folder, "test")) == 6
    assert read_split(folder, "train") is None


def test_there_are_57_subjects_in_four_groups():
    assert {name: len(subjects.split()) for name, subjects in GROUPS.items()} == {
        "stem": 19, "humanities": 13, "social_sciences": 12, "other": 13,
    }  # fmt: skip
    assert group_of("astronomy") == "stem/astronomy"
    assert group_of("knitting") == "other/knitting"


@pytest.mark.parametrize("line", ["q,1,2,3,B", "q,1,2,3,4,E", 'q,1,2,3,4,"B "'])
def test_a_wrong_line_is_named(tmp_path, line):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x_test.csv").write_text(f'"two\nlines",1,2,3,4,A\n{line}\n')
    with pytest.raises(DataError, match=r"x_test\.csv, line 3: found"):
        read_split(tmp_path, "test")


def test_a_quotation_mark_that_nothing_closes(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x_test.csv").write_text(f'q,1,2,3,4,A\n"{"x" * 200}\n')
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(DataError, match=r"x_test\.csv, line 2: field larger than"):
            read_split(tmp_path, "test")
    finally:
        csv.field_size_limit(before)


def test_no_folder(tmp_path):
    assert find_folder(tmp_path, "mmlu") is None
