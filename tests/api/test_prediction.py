"""`predict_rows` and `predict_file`: what `eval` and `predict` give, window by window, in order."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import sys

import pytest
import torch

import bayeslora_cli as bl
from bayeslora_cli.evaluation.streaming import stream
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


def test_rows_on_frozen_weights_of_another_precision(run, pairs):
    """Those of the run on such weights, which rounds them to 8 significant bits."""
    found = list(run.predict_rows(iter(pairs), base_precision="bf16"))
    usual = list(run.predict_rows(iter(pairs)))
    name = f"p({run.task.classes[0]})"
    off = [abs(row[name] - other[name]) for row, other in zip(found, usual, strict=True)]
    assert 0 < max(off) < 0.02
    with pytest.raises(bl.errors.UserError, match="--base-precision int3: choose one of"):
        list(run.predict_rows(iter(pairs), base_precision="int3"))


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


@pytest.mark.parametrize(
    ("bad", "message"), [("x,only two", "found 2 fields"), ("x,,w1,?", "found an empty field")]
)
def test_rows_before_a_bad_one_are_written_whole(run, pairs, tmp_path, caplog, bad, message):
    source = table(tmp_path / "in.csv", pairs)
    with source.open("a") as file:
        file.write(f"{bad}\nx,w1,w2,?\n")
    output = tmp_path / "out.csv"
    with pytest.raises(bl.errors.UserError, match=f"line 25: {message}"):
        run.predict_file(source, output)
    with output.open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"n{i}" for i in range(len(pairs))]
    assert f"rows written to {output}: 23" in caplog.text


def test_a_full_disk_leaves_whole_rows(run, pairs, tmp_path, monkeypatch):
    output, room, write = tmp_path / "out.csv", [1500], os.write

    def full(descriptor, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, content[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(bl.errors.StorageError, match="No space left"):
        run.predict_file(table(tmp_path / "in.csv", pairs), output)
    with output.open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"n{i}" for i in range(10)]


def test_mistakes_are_found_before_the_model_is_loaded(run, pairs, tmp_path):
    source, again = table(tmp_path / "in.csv", pairs), bl.Run(run.path)
    with pytest.raises(bl.errors.UserError, match=r"--keep no: .* no such column"):
        again.predict_file(source, None, keep=["no"])
    source.write_text(source.read_text().split("\n")[0])
    with pytest.raises(bl.errors.UserError, match="found no rows"):
        again.predict_file(source, tmp_path / "out.csv")
    assert "loaded" not in vars(again)


def test_samples_are_drawn_once_for_all_windows(run, pairs, monkeypatch):
    posterior, drawn = run.loaded.posterior, []
    draw = type(posterior).sample
    monkeypatch.setattr(type(posterior), "sample", lambda *given: drawn.append(1) or draw(*given))
    found = list(run.predict_rows(pairs, samples=2))
    assert len(drawn) == 2
    monkeypatch.setattr(stream, "KEPT_BYTES", 0)
    assert list(run.predict_rows(pairs, samples=2)) == found
    assert len(drawn) == 2 + 3 * 2


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
