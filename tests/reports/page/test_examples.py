"""The examples of each kind of task: their texts as people read them, and how wrong they are."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bayeslora_cli.reports.page.examples import SHOWN, summarise
from bayeslora_cli.tasks.dialogue import Turn, to_text
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.choice_tasks.questions import Continuation, choices_to_text
from bayeslora_cli.tasks.task import Examples


def shown(kind, classes, shares, labels, first, second=None, uncertainty=None):
    """What the page shows of an evaluation of one split."""
    objective = build_objective(kind, classes)
    labels = objective.label_tensor(labels)
    shares = torch.tensor(shares, dtype=torch.float64)
    if uncertainty is None and objective.probabilistic:
        whole = torch.stack([shares, shares], -1) if kind == "choice" else shares
        uncertainty = {"entropy": objective.entropy(whole)}
    found = SimpleNamespace(
        metrics={"validation": {"nll": 1.0}}, sampled=None, ood=None, facts={},
        uncertainty={"validation": uncertainty or {}}, predictions={"validation": shares},
        labels={"validation": labels},
        examples={"validation": Examples(first=first, second=second, labels=None)},
    )  # fmt: skip
    return summarise(found, objective)


def lines(examples):
    return [(e.row, e.label, e.predicted, *e.texts) for e in examples]


def test_classes():
    shares = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]
    found = shown("classification", ("no", "yes"), shares, [0, 0, 0], ["a", "b", "c"])
    assert lines(found.least_sure)[0] == (1, "no", "yes", "b")
    assert lines(found.most_wrong) == [(2, "no", "yes", "c"), (1, "no", "yes", "b")]
    assert found.most_wrong[0].measure == pytest.approx(-torch.tensor(0.2).log().item())
    assert found.measures == {"unsure": "entropy", "wrong": "loss, nats"}


def test_scores():
    found = shown("regression", (), [1.0, 5.0], [1.5, 2.0], ["a", "b"], ["c", "d"])
    assert lines(found.most_wrong) == [(1, "2", "5", "b", "d"), (0, "1.5", "1", "a", "c")]
    assert (found.least_sure, found.measures) == ((), {"wrong": "absolute error"})


def test_any_number_of_classes():
    shares = [[0.9, 0.9], [0.2, 0.1], [0.9, 0.2]]
    found = shown("multi-label", ("x", "y"), shares, [(0, 1), (0, 1), ()], ["a", "b", "c"])
    assert lines(found.most_wrong) == [(1, "x, y", "none", "b"), (2, "none", "x", "c")]


def test_tags():
    """The word that is the worst of its sentence, and the sentence."""
    rows = [json.dumps(["Ada", "met", "Kurt"]), json.dumps(["Oslo"])]
    shares = [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3]]
    found = shown("token-classification", ("O", "B-PER"), shares, [(1, 0, 1), (0,)], rows)
    assert lines(found.most_wrong) == [(0, "B-PER", "O", "Ada", "Ada met Kurt")]
    unsure = [(0, "O", "O", "met", "Ada met Kurt"), (1, "O", "O", "Oslo", "Oslo")]
    assert lines(found.least_sure) == unsure


def test_pairs():
    second = [json.dumps([f"p{i}", f"n{i}"]) for i in range(2)]
    shares = [[0.7, 0.3], [0.6, 0.4]]
    found = shown("embedding", (), shares, [0, 0], ["a", "b"], second)
    assert lines(found.most_wrong) == [(1, "1", "0", "b", "p1", "n1")]


def test_pairs_with_scores():
    """Texts of a low score need not find each other."""
    second = [json.dumps([f"p{i}"]) for i in range(3)]
    whole = [[0.2, 0.7, 0.1, 0.5], [0.6, 0.3, 0.1, 0.1], [0.1, 0.2, 0.7, 0.9]]
    uncertainty = {"entropy": torch.tensor([0.8, 0.9, 0.7])}
    found = shown("embedding", (), [row[:3] for row in whole], [1.0, 0.0, 0.9], list("abc"),
                  second, uncertainty)  # fmt: skip
    assert lines(found.most_wrong) == [(0, "0", "1", "a", "p0")]


@pytest.mark.parametrize("kind", ["choice", "multiple-choice"])
def test_choices(kind):
    first, second = "which?", json.dumps(["one", "two"])
    if kind == "choice":
        first = to_text([Turn("", "which?", False)])
        second = choices_to_text([Continuation(" one"), Continuation(" two")])
    found = shown(kind, ("A", "B"), [[0.3, 0.7]], [0], [first], [second])
    assert lines(found.most_wrong) == [(0, "A", "B", "which?", "A: one", "B: two")]


def test_texts_that_are_only_read():
    rows = [to_text([Turn("user", "hi", False), Turn("", "raw", True)])] * 2
    sums = [[-4.0, 2.0], [-9.0, 3.0]]
    found = shown("causal", (), sums, [0, 0], rows, uncertainty={"variance": torch.ones(2)})
    assert lines(found.most_wrong)[0] == (1, None, None, "user: hi", "raw")
    assert [e.measure for e in found.most_wrong] == [3.0, 2.0]
    assert found.measures == {"unsure": "variance", "wrong": "loss per token, nats"}


def test_only_so_many():
    shares = [[i / 100, 1 - i / 100] for i in range(40)]
    found = shown("classification", ("a", "b"), shares, [0] * 40, list(map(str, range(40))))
    assert [e.row for e in found.most_wrong] == list(range(SHOWN))
