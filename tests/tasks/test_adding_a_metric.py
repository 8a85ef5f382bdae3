"""The metric of docs/extending.md, entered from a script and selected by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bayeslora_cli.config.catalogue import METRICS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.selecting import selected_by
from bayeslora_cli.tasks.task import Task

PAGE = Path(__file__).parents[2] / "docs/extending.md"
TASK = Task(
    name="custom", text_columns=("text",), label_column="label", classes=("a", "b", "c"),
    metrics=("accuracy", "macro_f1"), selecting="accuracy",
)  # fmt: skip


def test_the_example_is_selected_by(monkeypatch, tmp_path):
    (code,) = re.findall(
        r"## A metric\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.setitem(METRICS, "kappa", METRICS["accuracy"])
    monkeypatch.setattr(Classification, "selectable", Classification.selectable)
    (tmp_path / "my_kappa.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("my_kappa")
    config = RunConfig(select="Kappa")
    task = selected_by(TASK, config.select)
    assert task.selecting == "kappa"
    assert task.metrics == ("accuracy", "macro_f1", "kappa")
    logits, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    found = objective_of(task).training_metrics(task.metrics, logits, labels)
    assert found["kappa"] == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
