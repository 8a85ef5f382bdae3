"""Predictions as files: what is read back is what was given, in every format."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.prediction_files import (
    SUFFIXES,
    Predicted,
    write_predictions,
    write_submission,
)
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers
from bayeslora_cli.tasks.sources.glue import TASKS, read_tsv
from bayeslora_cli.tasks.sources.label_column import number_in
from bayeslora_cli.tasks.task import Task

NAMES = st.lists(
    st.text(max_size=6) | st.sampled_from(["a,b", 'a"b', "a\tb", "a\nb", "a\rb", "", "1", " "]),
    min_size=2,
    max_size=4,
    unique=True,
)


def task_of(classes):
    return Task(
        name="custom",
        text_columns=("text",),
        label_column="label",
        classes=tuple(classes),
        metrics=("accuracy",),
        selecting="accuracy",
    )


def random_split(task, rows, *, seed=0, labels=True, **extra):
    generator = torch.Generator().manual_seed(seed)
    if not task.classes:
        values = torch.randn(rows, generator=generator) * 3 + 2.5
        truth = torch.rand(rows, generator=generator) * 5
    else:
        values = torch.randn(rows, len(task.classes), generator=generator).softmax(-1)
        truth = torch.randint(len(task.classes), (rows,), generator=generator)
    return Predicted(values=values, labels=truth if labels else None, extra=extra)


def read(path):
    """Header and rows, each cell as the format gives it."""
    if path.suffix == ".jsonl":
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        rows = [json.loads(line) for line in lines]
        assert len({tuple(row) for row in rows}) == 1
        return list(rows[0]), [list(row.values()) for row in rows]
    with path.open(encoding="utf-8", newline="") as file:
        delimiter = "," if path.suffix == ".csv" else "\t"
        header, *rows = csv.reader(file, delimiter=delimiter, strict=True)
    return header, rows


def cell(name, suffix):
    """A class's name in a file: what a spreadsheet would take for a formula has a ' in front."""
    formula = name[:1] in {"=", "+", "-", "@", "\t", "\r"} and number_in(name) is None
    return f"'{name}" if formula and suffix != ".jsonl" else name


@settings(max_examples=80, deadline=None)
@given(
    classes=NAMES, rows=st.integers(1, 5), seed=st.integers(0, 99), suffix=st.sampled_from(SUFFIXES)
)
def test_classes_are_read_back(tmp_path_factory, classes, rows, seed, suffix):
    path = tmp_path_factory.mktemp("out") / f"found{suffix}"
    task = task_of(classes)
    entropy = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    split = random_split(task, rows, seed=seed, entropy=entropy)
    write_predictions(path, task, {"validation": split})
    header, found = read(path)
    assert header == ["row", "prediction", "label", *(f"p({c})" for c in classes), "entropy"]
    assert [int(row[0]) for row in found] == list(range(rows))
    cells = [cell(name, suffix) for name in classes]
    assert [row[1] for row in found] == [cells[i] for i in split.values.argmax(1)]
    assert [row[2] for row in found] == [cells[i] for i in split.labels]
    numbers = torch.tensor([[float(x) for x in row[3:]] for row in found])
    assert torch.equal(numbers, torch.cat((split.values, entropy[:, None]), 1))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_read_back(tmp_path, suffix, dtype):
    task = task_of(())
    scores = torch.tensor([0.1, -2.0, 1e-20, 3.3333333, 1e9], dtype=dtype)
    path = tmp_path / f"found{suffix}"
    write_predictions(path, task, {"test": Predicted(values=scores)})
    header, found = read(path)
    assert header == ["row", "prediction"]
    assert torch.equal(torch.tensor([float(row[1]) for row in found], dtype=dtype), scores)
    assert "0.1" in path.read_text()
    assert "0.10" not in path.read_text()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_splits_stand_one_after_the_other(tmp_path, suffix):
    """Each counts its own rows; one without labels leaves the field empty."""
    task = task_of("ab")
    splits = {
        "validation": random_split(task, 3, ids=torch.tensor([7, 8, 9])),
        "test": random_split(task, 2, labels=False, ids=torch.tensor([1, 2])),
    }
    path = tmp_path / f"found{suffix}"
    write_predictions(path, task, splits)
    header, found = read(path)
    assert header == ["split", "row", "prediction", "label", "p(a)", "p(b)", "ids"]
    assert [row[0] for row in found] == ["validation"] * 3 + ["test"] * 2
    assert [int(row[1]) for row in found] == [0, 1, 2, 0, 1]
    nothing = None if suffix == ".jsonl" else ""
    assert [row[3] for row in found[3:]] == [nothing] * 2
    assert nothing not in [row[3] for row in found[:3]]
    assert [str(row[6]) for row in found] == ["7", "8", "9", "1", "2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_plain_names_make_plain_lines(tmp_path, suffix):
    task = task_of(("no", "yes"))
    path = tmp_path / f"found{suffix}"
    write_predictions(path, task, {"test": Predicted(values=torch.tensor([[0.25, 0.75]]))})
    assert (
        path.read_bytes().decode()
        == {
            ".csv": "row,prediction,p(no),p(yes)\n0,yes,0.25,0.75\n",
            ".tsv": "row\tprediction\tp(no)\tp(yes)\n0\tyes\t0.25\t0.75\n",
            ".jsonl": '{"row": 0, "prediction": "yes", "p(no)": 0.25, "p(yes)": 0.75}\n',
        }[suffix]
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_leaves_the_old_file(tmp_path, suffix):
    """A column that is short fails when rows are on their way already."""
    task = task_of("ab")
    path = tmp_path / f"found{suffix}"
    write_predictions(path, task, {"test": random_split(task, 3)})
    old = path.read_bytes()
    good, bad = random_split(task, 3, x=torch.ones(3)), random_split(task, 3, x=torch.ones(2))
    with pytest.raises(ValueError, match="zip"):
        write_predictions(path, task, {"test": good, "more": bad})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_json_has_no_word_for_nan(tmp_path):
    split = Predicted(values=torch.tensor([0.5, float("nan")]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_predictions(tmp_path / "found.jsonl", task_of(()), {"test": split})
    assert not list(tmp_path.iterdir())


def test_the_directory_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "found.csv"
    write_predictions(path, task_of("ab"), {"test": random_split(task_of("ab"), 1)})
    assert path.is_file()


@pytest.mark.parametrize("name", ["found", "found.txt", "found.csv.gz", "found.CSV"])
def test_a_suffix_without_a_format(tmp_path, name):
    with pytest.raises(UserError, match=r"--predictions .*found.*\.csv, \.tsv, \.jsonl"):
        write_predictions(tmp_path / name, task_of("ab"), {"test": random_split(task_of("ab"), 1)})
    assert not list(tmp_path.iterdir())


def test_a_directory_or_a_file_in_the_way(tmp_path):
    task = task_of("ab")
    folder = tmp_path / "found.csv"
    folder.mkdir()
    with pytest.raises(UserError, match=r"--predictions .*found\.csv: is a directory"):
        write_predictions(folder, task, {"test": random_split(task, 1)})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--predictions .*cannot be written: "):
        write_predictions(tmp_path / "file" / "x.csv", task, {"test": random_split(task, 1)})


# ---- GLUE's submission

FILES = {  # gluebenchmark.com: file by task, and how its classes are spelled
    "cola": (["CoLA.tsv"], ["0", "1"]),
    "sst2": (["SST-2.tsv"], ["0", "1"]),
    "mrpc": (["MRPC.tsv"], ["0", "1"]),
    "qqp": (["QQP.tsv"], ["0", "1"]),
    "mnli": (["MNLI-m.tsv", "MNLI-mm.tsv"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["QNLI.tsv"], ["entailment", "not_entailment"]),
    "rte": (["RTE.tsv"], ["entailment", "not_entailment"]),
    "wnli": (["WNLI.tsv"], ["0", "1"]),
}


@pytest.mark.parametrize("name", FILES)
def test_submission(tmp_path, name):
    task = TASKS[name]
    files, spelled = FILES[name]
    splits = {s: random_split(task, 9, seed=i) for i, s in enumerate(task.test_splits)}
    written = write_submission(tmp_path / "new", task, splits)
    assert [path.name for path in written] == files
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(files)
    for path, split in zip(written, splits.values(), strict=True):
        header, *lines = path.read_bytes().decode().split("\n")
        assert header == "index\tprediction"
        assert lines.pop() == ""
        best = split.values.argmax(1).tolist()
        assert lines == [f"{i}\t{spelled[k]}" for i, k in enumerate(best)]


@pytest.mark.parametrize("name", FILES)
def test_submission_spells_as_labels_are_read(tmp_path, name):
    """A submission read as a labelled file of the task gives the predicted classes back."""
    task = TASKS[name]
    split = random_split(task, 20)
    written = write_submission(tmp_path, task, {task.test_splits[0]: split})
    reading = replace(task, tsv_text=("index",), tsv_label="prediction", implied_header=())
    assert read_tsv(written[0], reading, labelled=True).labels == split.values.argmax(1).tolist()


def test_scores_are_submitted_within_their_range(tmp_path):
    scores = torch.tensor([-0.3, 0.0, 2.34567, 4.9996, 7.0])
    (path,) = write_submission(tmp_path, TASKS["stsb"], {"test": Predicted(values=scores)})
    assert path.name == "STS-B.tsv"
    assert path.read_text() == (
        "index\tprediction\n0\t0.000\n1\t0.000\n2\t2.346\n3\t5.000\n4\t5.000\n"
    )


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    task = TASKS["rte"]
    (path,) = write_submission(tmp_path, task, {"test": random_split(task, 5)})
    table = tmp_path / "found.csv"
    write_predictions(table, task, {"test": random_split(task, 5)})
    old = path.read_bytes(), table.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    other = {"test": random_split(task, 6, seed=1)}
    with pytest.raises(UserError, match=r"--submission .*RTE\.tsv: No space left"):
        write_submission(tmp_path, task, other)
    with pytest.raises(UserError, match=r"--predictions .*found\.csv: .*No space left"):
        write_predictions(table, task, other)
    assert (path.read_bytes(), table.read_bytes()) == old
    assert {p.name for p in tmp_path.iterdir()} == {path.name, table.name}


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_numbers_have_numpys_shortest_digits(numbers):
    values = torch.tensor(numbers, dtype=torch.float32)
    assert shortest_numbers(values) == [float(text) for text in values.numpy().astype(str)]
    assert shortest_numbers(values[None]) == [shortest_numbers(values)]


def test_formulas_and_quotation_marks(tmp_path):
    """A spreadsheet calculates what begins so; -1 is a number, and in a TSV a " is a character."""
    classes = ("=1+2", "@x", "-1", 'say "x"', "-a")
    task = task_of(classes)
    split = Predicted(values=torch.eye(5), labels=torch.arange(5))
    texts = {}
    for suffix in (".csv", ".tsv"):
        path = tmp_path / f"found{suffix}"
        write_predictions(path, task, {"validation": split})
        texts[suffix] = path.read_text().splitlines()[1:]
    assert [line.split("\t")[1] for line in texts[".tsv"]] == [
        "'=1+2", "'@x", "-1", 'say "x"', "'-a",
    ]  # fmt: skip
    assert [row[1] for row in csv.reader(texts[".csv"])] == [
        "'=1+2", "'@x", "-1", 'say "x"', "'-a",
    ]  # fmt: skip
