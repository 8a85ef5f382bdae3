"""Multiple choice: shares, metrics, and what a tie or a missing choice counts."""

from __future__ import annotations

import math

import pytest
import torch

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.calibration import brier, ece, nll
from bayeslora_cli.tasks.objectives.objective import build_objective

CHOICE = build_objective("choice", ("A", "B", "C"))
NAMES = ("accuracy", "accuracy_norm")


def expected(likelihoods, sizes=None):
    found = torch.tensor(likelihoods, dtype=torch.float64)
    sizes = torch.ones_like(found) if sizes is None else torch.tensor(sizes).double()
    return CHOICE.expected(torch.stack((found, sizes), -1))


def test_sequences_become_examples():
    """A row of letters in one sequence; a row of two whole answers in two."""
    found = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0], [0.0, -5.0, 0.0]])
    cells = torch.tensor([[0, 1, 1, 1], [1, 7, 0, 0], [1, 0, 9, 0]])
    arranged = CHOICE.arranged(found, cells)
    assert arranged[..., 0].tolist() == [[-1, -2, -3], [-4, -5, -math.inf]]
    assert arranged[..., 1].tolist() == [[1, 1, 1], [7, 9, 1]]
    shares = CHOICE.shown(CHOICE.expected(arranged.double()))
    assert shares[1].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0])


def test_more_choices_than_the_task_has():
    with pytest.raises(DataError, match="a row of 4 choices"):
        CHOICE.arranged(torch.zeros(1, 3), torch.tensor([[0, 1, 1, 1, 1]]))


def test_predict_sums_by_row_and_column():
    batch = {
        "input_ids": torch.zeros(2, 4),
        "predicting": torch.tensor([1, 2, 4, 6]),
        "targets": torch.tensor([5, 5, 5, 5]),
    }
    logits = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    assert CHOICE.predict(logits, batch).tolist() == [[-3, 0, 0], [-12, 0, 0]]
    batch["columns"] = torch.tensor([0, 2, 1, 1])
    assert CHOICE.predict(logits, batch).tolist() == [[-1, 0, -2], [0, -12, 0]]


def test_length_changes_the_choice():
    values = expected([[-6.0, -8.0, -9.0]], [[2, 4, 9]])
    assert CHOICE.metrics(NAMES, values, torch.tensor([2]))["accuracy_norm"] == 1
    assert CHOICE.metrics(NAMES, values, torch.tensor([0]))["accuracy"] == 1


def test_metrics_are_those_of_the_shares():
    torch.manual_seed(0)
    likelihoods, labels = torch.randn(50, 3) * 3, torch.randint(0, 3, (50,))
    values = expected(likelihoods.tolist())
    shares = CHOICE.shown(values)
    found = CHOICE.metrics(("accuracy",), values, labels)
    assert found["nll"] == pytest.approx(nll(likelihoods, labels), rel=1e-6)
    assert found["ece"] == ece(shares, labels)
    assert found["brier"] == brier(shares, labels)
    assert found["accuracy"] == pytest.approx(float((shares.argmax(-1) == labels).double().mean()))
    assert 0 < found["error_auroc"] < 1
    wrong = (shares.argmax(-1) + 1) % 3
    assert "error_auroc" not in CHOICE.metrics(("accuracy",), values, wrong)


def test_a_tie_counts_what_a_draw_gives():
    values = expected([[-1.0, -1.0, -2.0], [-1.0, -1.0, -1.0], [-2.0, -1.0, -1.0]])
    labels = torch.tensor([1, 0, 0])
    assert CHOICE.metrics(("accuracy",), values, labels)["accuracy"] == pytest.approx(
        (1 / 2 + 1 / 3 + 0) / 3
    )


def test_names_of_choices():
    assert CHOICE.spell(torch.tensor([0, 2])) == ["A", "C"]
    assert build_objective("choice", ()).spell(torch.tensor([25])) == ["Z"]
