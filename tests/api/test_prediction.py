"""`predict_rows` and `predict_file`: what `eval` and `predict` give, window by window, in order."""

from __future__ import annotations

import csv
import json
import os
import random
import sys

import pytest
import torch

import bayeslora_cli as bl
from bayeslora_cli.tasks.sources.tables import windows
from tests.api.test_training import options
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def run(backbone, rte, tmp_path_factory):
    return bl.train(
        **options(backbone, rte, tmp_path_factory.mktemp("run"), max_steps=8, t_init=2, t_final=2,
                  delta_t=1)
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    draw = random.Random(0)
    return [
        tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(2))
        for _ in range(23)
    ]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(windows, "ROWS", 10)


@pytest.mark.parametrize("samples", [None, 2])
def test_rows_are_those_of_predict(run, pairs, samples):
    rows = list(run.predict_rows(iter(pairs), samples=samples))
    expected = run.predict(pairs, samples=samples)
    found = torch.tensor([[row[f"p({name})"] for name in run.task.classes] for row in rows])
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    assert [(row["sentence1"], row["sentence2"]) for row in rows] == pairs
    names = [run.task.classes[index] for index in expected.argmax(1)]
    assert [row["prediction"] for row in rows] == names
    assert ("mutual_information" in rows[0]) is (samples is not None)
    assert all(row["entropy"] >= 0 for row in rows)


def test_they_come_as_they_are_asked_for(run, pairs):
    read = []

    def endless():
        while True:
            read.append(pairs[0])
            yield pairs[0]

    assert next(run.predict_rows(endless()))["prediction"] in run.task.classes
    assert len(read) == windows.ROWS


def table(path, pairs):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "sentence1", "sentence2", "label"])
        writer.writerows([f"n{i}", *pair, "?"] for i, pair in enumerate(pairs))
    return path


def test_a_file_keeps_its_columns(run, pairs, tmp_path):
    source = table(tmp_path / "in.csv", pairs)
    told = []
    output = tmp_path / "out.csv"
    assert run.predict_file(source, output, top_k=1, progress=told.append) == len(pairs)
    assert told == [10, 20, 23]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "id", "sentence1", "sentence2", "label", "prediction", "top1", "p(top1)", "entropy"
    ]  # fmt: skip
    assert [row["id"] for row in rows] == [f"n{i}" for i in range(len(pairs))]
    assert all(row["prediction"] == row["top1"] for row in rows)
    run.predict_file(source, tmp_path / "out.jsonl", keep=["id"])
    first = json.loads((tmp_path / "out.jsonl").read_text().split("\n")[0])
    assert list(first)[:2] == ["id", "prediction"]


def test_rows_before_a_bad_one_are_written_whole(run, pairs, tmp_path):
    source = table(tmp_path / "in.csv", pairs)
    with source.open("a") as file:
        file.write("x,only two\n")
    output = tmp_path / "out.csv"
    with pytest.raises(bl.errors.UserError, match="line 25: found 2 fields"):
        run.predict_file(source, output)
    assert output.read_text().count("\n") == 21  # the header and two windows
    assert output.read_text().endswith("\n")


def test_from_a_pipe_to_a_pipe(run, monkeypatch):
    read, write = os.pipe()
    os.write(write, b"w1 w2\tw3\n" * 3)
    os.close(write)
    out_read, out_write = os.pipe()
    with os.fdopen(read) as given, os.fdopen(out_write, "w") as file:
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "stdout", file)
        assert run.predict_file("-", None) == 3
    with os.fdopen(out_read) as file:
        rows = [json.loads(line) for line in file]
    assert [row["sentence2"] for row in rows] == ["w3"] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 0}, "--top-k 0"),
        ({"samples": 0}, "--samples 0"),
        ({"keep": ["no"]}, "--keep no: .* has no such column"),
        ({"text_columns": ["sentence1"]}, "the run reads 2 columns"),
        ({"text_columns": ["sentence1", "no"]}, "no column 'no'"),
        ({"input_format": "xls"}, "--input-format xls"),
        ({"output_format": "csv"}, "is written as its ending says"),
    ],
)
def test_bad_options(run, pairs, given, message, tmp_path):
    source = table(tmp_path / "in.csv", pairs)
    with pytest.raises(bl.errors.UserError, match=message):
        run.predict_file(source, tmp_path / "out.jsonl", **given)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_column_that_is_there_already(run, pairs, tmp_path):
    source = table(tmp_path / "in.csv", pairs)
    run.predict_file(source, tmp_path / "once.csv")
    with pytest.raises(bl.errors.UserError, match="a column 'entropy', as the predictions have"):
        run.predict_file(tmp_path / "once.csv", tmp_path / "twice.csv")
    run.predict_file(tmp_path / "once.csv", tmp_path / "twice.csv", keep=["id", "label"])
    with pytest.raises(bl.errors.UserError, match="is the input"):
        run.predict_file(source, source)
