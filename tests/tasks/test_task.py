"""Tasks as files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.tasks.sources.demo import DEMO
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.task import Examples, Task, data_checksum


@pytest.mark.parametrize("task", [DEMO, *TASKS.values()], ids=lambda task: task.name)
def test_a_task_survives_its_file(task):
    read = Task.from_json(json.loads(json.dumps(task.to_json())), "task.json")
    assert read.to_json() == task.to_json()
    assert (read.objective, read.splits) == (task.objective, task.splits)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"name": None}])
def test_a_corrupt_file_is_named(change):
    value = {k: v for k, v in (DEMO.to_json() | change).items() if v is not None}
    with pytest.raises(RunDirError, match=r"there/task\.json is corrupt"):
        Task.from_json(value, "there/task.json")


def test_splits_in_their_order():
    assert DEMO.splits == ("train", "validation", "ood")
    assert TASKS["mnli"].required_splits == (
        "train", "validation_matched", "validation_mismatched",
    )  # fmt: skip


def test_the_checksum_is_of_the_content():
    def rows(first, second=None, labels=(0, 1)):
        return {"train": Examples(first, second, list(labels))}

    task = Task(
        name="custom", text_columns=("a",), label_column="b", classes=("x", "y"), metrics=(),
        selecting="accuracy",
    )  # fmt: skip
    usual = data_checksum(task, rows(["ab", "c"]))
    renamed = replace(task, text_columns=("other",), label_column="names")
    assert data_checksum(renamed, rows(["ab", "c"])) == usual
    others = [
        (task, rows(["a", "bc"])),
        (task, rows(["ab", "c"], labels=(1, 0))),
        (task, rows(["ab", "c"], ["", ""])),
        (task, {"validation": rows(["ab", "c"])["train"]}),
        (replace(task, classes=("y", "x")), rows(["ab", "c"])),
        (task, rows(["ab", "\ud83d"])),
    ]
    assert len({usual, *(data_checksum(*other) for other in others)}) == 7
