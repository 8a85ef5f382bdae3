"""The user's choices on an uneven table: selecting metric, class weights, early stopping."""

from __future__ import annotations

import json
import logging
import random

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.packing import pack
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.plan import describe_plan, dry_run
from bayeslora_cli.training.preparation import prepare
from tests.support.faults import contents, differences
from tests.support.objectives import TWO_CLASSES


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """54 rows of ham and 10 of spam, and the words by which they differ."""
    draws = random.Random(0)
    rows = ["text,label"]
    for label, word, count in (("ham", "meet", 54), ("spam", "win", 10)):
        rows += [f"{word} {draws.choice('abcde')} {draws.choice('fgh')},{label}"] * 1 + [
            f"{word} {draws.choice('abcde')} {draws.choice('fgh')} {n},{label}"
            for n in range(count - 1)
        ]
    path = tmp_path_factory.mktemp("own") / "mail.csv"
    path.write_text("\n".join(rows))
    return str(path)


@pytest.fixture
def typed(backbone, table, tmp_path):
    def options(**changes):
        return {
            "train_file": table, "model": backbone("bert", 0.1), "output": str(tmp_path),
            "method": "lora", "max_steps": 24, "batch_size": 16, "max_length": 16,
            "device": "cpu", "lr": 1e-12,
        } | changes  # fmt: skip

    return options


def test_uneven_classes_are_told_with_what_to_do(typed, caplog):
    with caplog.at_level(logging.INFO, "bayeslora"):
        prepare(resolve(typed()))
    (line,) = (r.getMessage() for r in caplog.records if "uneven" in r.getMessage())
    assert "'ham'" in line
    assert "--select macro-f1" in line
    assert "--class-weights balanced" in line
    caplog.clear()
    prepared = prepare(resolve(typed(select="macro-F1")))
    assert not any("uneven" in r.getMessage() for r in caplog.records)
    assert prepared.task.selecting == "macro_f1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select": "rmse"}, r"--select rmse: custom predicts a class; choose one of accuracy, "),
        ({"select": "acuracy"}, r"--select acuracy: .*did you mean accuracy"),
        (
            {"class_weights": "spam=5,eggs=1"},
            "--class-weights: no class 'eggs'; there are ham, spam",
        ),
        ({"class_weights": "spam:5"}, "LABEL=WEIGHT"),
        ({"patience": 0}, "--patience 0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(typed, changes, said):
    with pytest.raises(ConfigError, match=said):
        prepare(resolve(typed(**changes)))


def test_scores_have_no_classes_to_weigh(typed, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("text,label\n" + "\n".join(f"row {n},{n / 7}" for n in range(40)))
    with pytest.raises(ConfigError, match="--class-weights: custom predicts a score"):
        prepare(resolve(typed(train_file=str(path), class_weights="balanced")))
    prepared = prepare(resolve(typed(train_file=str(path), select="rmse")))
    assert prepared.task.selecting == "rmse"


@pytest.mark.parametrize(("asked", "ratio"), [("balanced", None), ("spam=5", 5), ("ham=0.1", 10)])
def test_class_weights_have_the_mean_1(typed, asked, ratio):
    prepared = prepare(resolve(typed(class_weights=asked)))
    labels = prepared.examples["train"].labels
    weights = prepared.class_weights()
    of_rows = prepared.tokens()["train"].weights
    assert of_rows.mean() == pytest.approx(1)
    assert of_rows.tolist() == pytest.approx([list(weights.values())[y] for y in labels])
    if ratio is None:
        theirs = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
        assert list(weights.values()) == pytest.approx(theirs.tolist())
    else:
        assert weights["spam"] / weights["ham"] == pytest.approx(ratio)
    assert "weights" not in prepared.tokens()["validation"].batch(torch.tensor([0]))


def test_the_loss_is_the_weighted_mean_of_rows_padded_or_packed(typed):
    split = prepare(resolve(typed(class_weights="balanced"))).tokens()["train"]
    rows = torch.tensor([3, 0, 11])
    logits = torch.randn(3, 2)
    wanted = (
        F.cross_entropy(logits, split.labels[rows], reduction="none") * split.weights[rows]
    ).mean()
    for batch in (split.batch(rows), pack(split, rows, fixed=False)):
        torch.testing.assert_close(TWO_CLASSES.loss(logits, batch), wanted)


def test_a_run_ends_when_nothing_gets_better_and_resumes_exactly(typed, killed_at, tmp_path):
    """Every rate is nearly 0: the first evaluation stays the best one."""
    changes = {
        "select": "macro_f1", "class_weights": "balanced", "patience": 2, "lr_schedule": "cosine",
        "warmup_ratio": 0.25, "max_grad_norm": 0.5, "weight_decay": 0.1,
        "weight_decay_of": "matrices", "checkpoint_every": "5",
    }  # fmt: skip
    run = train(resolve(typed(**changes, output=str(tmp_path / "whole"))))
    result = run.read_result()
    assert result["steps"] == 12  # 4 per epoch; evaluated at 4, 8 and 12
    assert result["stopped_early"] == {"planned_steps": 24, "patience": 2}
    assert result["selecting"] == "macro_f1"
    assert result["best"]["step"] == 3
    assert result["best"]["value"] == result["best"]["metrics"]["validation"]["macro_f1"]
    for crash in (6, 11):
        with killed_at(crash):
            train(resolve(typed(**changes, output=str(tmp_path / str(crash)))))
        again = train(resolve(typed(**changes, output=str(tmp_path / str(crash)))))
        assert differences(again.path, contents(run.path)) == []
    assert train(resolve(typed(**changes, output=str(tmp_path / "whole")))).path == run.path


def test_the_rank_schedule_is_completed_first(typed, caplog):
    changes = {"method": "adalora", "optimizer": "adamw", "criterion": "magnitude", "t_final": 16}
    run = train(resolve(typed(**changes, patience=1, max_steps=24)))
    result = run.read_result()
    assert result["stopped_early"] == {
        "planned_steps": 24, "patience": 1, "rank_schedule": "completed"
    }  # fmt: skip
    assert result["steps"] == 16  # ranks are final from step 8 on: evaluated at 12 and 16
    assert json.loads(run.ranks.read_text())["budget"] == 2 * len(result["ranks"])
    train(resolve(typed(**changes, patience=4)))
    assert "--patience 4 cannot end the run early" in caplog.text


def test_a_dry_run_says_it(typed):
    resolved = resolve(typed(
        select="mcc", class_weights="spam=3", patience=2, method="adalora", optimizer="adamw",
        criterion="magnitude", t_final=16,
    ))  # fmt: skip
    found = dry_run(prepare(resolved), resolved)
    assert found["early_stopping"] == {"patience": 2, "after_step": 8, "evaluations": 4}
    assert found["class_weights"].keys() == {"ham", "spam"}
    text = describe_plan(found)
    assert "best evaluation by" in text
    assert "matthews" in text
    assert "weights in the loss" in text
    assert "after 2 evaluations without a better one, of the 4 from step 9 on" in text
