"""Tasks as files."""

from __future__ import annotations

import json

import pytest

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.tasks.sources.demo import DEMO
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.task import Task


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
