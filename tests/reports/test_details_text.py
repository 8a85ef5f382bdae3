"""Tables of classes and confusions: within 80 columns, whatever the names."""

from __future__ import annotations

import pytest
import torch
from rich.cells import cell_len
from sklearn.metrics import classification_report

from bayeslora_cli.reports.details_text import LINES, details_text
from bayeslora_cli.tasks.objectives.objective import build_objective


def details(names, rows=400, right=0.7):
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(names), (rows,), generator=draws)
    others = torch.randint(0, len(names), (rows,), generator=draws)
    decided = torch.where(torch.rand(rows, generator=draws) < right, labels, others)
    expected = torch.nn.functional.one_hot(decided, len(names)).double()
    return build_objective("classification", names).details(expected, labels), decided, labels


NAMES = {
    "two": ["no", "yes"],
    "wide": ["世界ニュース", "経済", "a\x1b[31mred", "four words in a label"],
    "many": [f"intent number {n} of a bank" for n in range(77)],
    "too many": [str(n) for n in range(101)],
}


@pytest.mark.parametrize("kind", NAMES)
def test_tables_fit_and_agree_with_scikit_learn(kind):
    names = NAMES[kind]
    found, decided, labels = details(names)
    report = classification_report(
        labels, decided, labels=range(len(names)), output_dict=True, zero_division=0.0
    )
    for index, record in enumerate(found["classes"]):
        theirs = report[str(index)]
        assert record["label"] == names[index]
        assert record["rows"] == theirs["support"]
        assert record["precision"] == pytest.approx(theirs["precision"])
        assert record["recall"] == pytest.approx(theirs["recall"])
        assert record["f1"] == pytest.approx(theirs["f1-score"])
    assert ("confusion" in found) == (len(names) <= 100)
    if "confusion" in found:
        assert sum(map(sum, found["confusion"])) == len(labels)
        assert [sum(row) for row in found["confusion"]] == [r["rows"] for r in found["classes"]]
    lines = details_text({"details": {"mean": {"validation": found}}})
    assert max(map(cell_len, lines)) <= 80
    assert len(lines) <= 2 * LINES + 6
    assert not any("\x1b" in line for line in lines)
    assert any(line.startswith("predicted:") for line in lines) == (len(names) < 10)
    assert any(line.startswith("most confused") for line in lines) == (len(names) >= 10)


def test_what_is_shown_is_over_samples_if_there_are_any():
    found, *_ = details(["no", "yes"])
    split = {"validation": found}
    lines = details_text({"details": {"mean": split, "sampled": split}})
    assert lines[1].startswith("classes, over samples")
    both = details_text({"details": {"mean": {"matched": found, "mismatched": found}}})
    assert [line.split()[0] for line in both if line.endswith("f1")] == ["matched", "mismatched"]
    assert details_text({"metrics": {}}) == []


def test_without_a_wrong_row_there_is_no_confusion():
    found, *_ = details([str(n) for n in range(30)], right=1.0)
    assert found["confused"] == []
    lines = details_text({"details": {"mean": {"validation": found}}})
    assert lines[-1] == "no row is predicted as another class than its label"
