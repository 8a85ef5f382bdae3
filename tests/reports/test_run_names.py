"""What groups of runs are called beside each other."""

from __future__ import annotations

import pytest

from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.reports.run_names import names_of


def settings(**typed):
    """As `config.toml` has them; None is left out there."""
    config = resolve({"task": "rte", **typed}).config
    return {name: value for name, value in affecting(config).items() if value is not None}


def methods(*rows):
    return [name.method for name in names_of([settings(**row) for row in rows])]


def test_names_are_the_papers_words():
    assert [str(name) for name in names_of([settings(task="stsb"), settings(method="lora")])] == [
        "STS-B, AdaLoRA + IVON, snr", "RTE, LoRA + AdamW"
    ]  # fmt: skip
    assert methods({"method": "full"}, {"method": "blora", "optimizer": "ivon"}) == [
        "full fine-tuning + AdamW", "B-LoRA + IVON"
    ]  # fmt: skip
    files = {"task": "custom", "train_file": "a/reviews.csv", "eval_file": "b"}
    assert names_of([settings(**files)])[0].task == "reviews"


def test_settings_are_told_where_they_tell_runs_apart():
    name = "AdaLoRA + IVON, snr"
    assert methods({"lr": 0.5}, {"method": "lora"}) == [name, "LoRA + AdamW"]
    assert methods({"lr": 0.5}, {"lr": 1.0}) == [f"{name}, lr 0.5", f"{name}, lr 1"]
    # a criterion beside them has that setting told too
    other = "AdaLoRA + IVON, magnitude, lr 0.5"
    rows = [{"lr": 0.5}, {"lr": 1.0}, {"lr": 0.5, "criterion": "magnitude"}, {"optimizer": "adamw"}]
    assert methods(*rows)[2:] == [other, "AdaLoRA + AdamW, sensitivity"]
    assert methods({"target_rank": 2}, {"target_rank": 4}) == [f"{name}, rank 2", f"{name}, rank 4"]
    assert methods({"t_init": 7}, {"t_init": 8}) == [f"{name}, t init 7", f"{name}, t init 8"]
    # a setting that differs between tasks only, as in presets, is no method of its own
    assert methods({"task": "rte"}, {"task": "cola"}) == [name, name]
    # but one column for all tasks
    assert methods({"lr": 1.0}, {"lr": 2.0}, {"task": "cola", "lr": 2.0}) == [
        f"{name}, lr 1", f"{name}, lr 2", f"{name}, lr 2"
    ]  # fmt: skip
    # nor where other settings tell the runs of each task apart
    known = [f"{name}, weight decay 0.1", f"{name}, weight decay 0.2"]
    rows = [{"lr": 1.0, "weight_decay": 0.1}, {"lr": 2.0, "weight_decay": 0.2}]
    assert methods(*rows, {"task": "cola", "lr": 3.0, "weight_decay": 0.1}) == [*known, known[0]]
    assert methods(*rows)[0] == f"{name}, lr 1, weight decay 0.1"


def test_the_order_is_that_of_the_table_of_results():
    rows = [settings(), settings(optimizer="adamw"), settings(method="lora"), settings(task="cola")]
    assert [str(name) for name in sorted(names_of(rows), key=lambda name: name.place)] == [
        "CoLA, AdaLoRA + IVON, snr", "RTE, LoRA + AdamW", "RTE, AdaLoRA + AdamW, sensitivity",
        "RTE, AdaLoRA + IVON, snr",
    ]  # fmt: skip


@pytest.mark.parametrize("odd", [{}, {"task": "rte", "method": "dora", "optimizer": "adamw"}])
def test_runs_that_cannot_be_named_keep_their_labels(odd):
    assert names_of([settings(), odd]) == (None, None)
    assert names_of([settings(), settings()]) == (None, None)
