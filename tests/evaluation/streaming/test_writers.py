"""Rows and predictions are written window by window, so that readers get back what was given."""

from __future__ import annotations

import csv
import json
import os

import pyarrow.parquet
import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.streaming.writers import (
    LineWriter,
    ParquetWriter,
    form_of,
    to_descriptor,
)

WINDOWS = [
    {"text": ['a, "b"', "=1\tx"], "prediction": ["=no", "é"], "p(é)": [0.25, 0.5]},
    {"text": ["c\rd\ne", ""], "prediction": ["é", "=no"], "p(é)": [1e-9, None]},
]


def lines(form):
    parts = []
    writer = LineWriter(form, parts.append)
    for columns in WINDOWS:
        writer.write(columns, ours=2)
    writer.close()
    return parts


def test_json_lines():
    first, second = lines("jsonl")
    found = [json.loads(line) for line in (first + second).decode().split("\n")[:-1]]
    wanted = [
        dict(zip(w, row, strict=True)) for w in WINDOWS for row in zip(*w.values(), strict=True)
    ]
    assert found == wanted
    assert "é".encode() in first


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_delimited(form, delimiter):
    parts = lines(form)
    text = b"".join(parts).decode()
    header, *rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    assert header == ["text", "prediction", "p(é)"]
    assert rows[0] == ['a, "b"', "'=no", "0.25"]  # the input's text stays as it was
    assert rows[1] == ["=1\tx", "é", "0.5"]
    assert all(part.endswith(b"\n") for part in parts)


def test_later_windows_have_the_same_columns():
    writer = LineWriter("csv", lambda content: None)
    writer.write({"a": [1], "prediction": ["x"]}, ours=1)
    with pytest.raises(UserError, match="column 'b'"):
        writer.write({"a": [1], "b": [2], "prediction": ["x"]}, ours=1)


def test_parquet(tmp_path):
    writer = ParquetWriter(tmp_path / "x.parquet")
    for columns in WINDOWS:
        writer.write(columns, ours=2)
    with pytest.raises(UserError, match="one type"):
        writer.write({"text": [3], "prediction": ["x"], "p(é)": ["y"]}, ours=2)
    writer.close()
    found = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert found == {name: [*WINDOWS[0][name], *WINDOWS[1][name]] for name in found}


def test_predicted_vectors_are_fp32_in_parquet(tmp_path):
    writer = ParquetWriter(tmp_path / "x.parquet")
    for numbers in ([0.5, 0.1], [0.25, 3.0]):
        writer.write({"own": [numbers], "embedding": [numbers], "p": [0.5]}, ours=2)
    writer.close()
    found = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    kinds = [str(kind.type) for kind in found.schema]
    assert kinds == ["list<element: double>", "list<element: float>", "double"]
    assert found["embedding"].to_pylist()[1] == [0.25, 3.0]


def test_a_pipe_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        to_descriptor(write, "x")(b"a")
    os.close(write)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.xls", "names no form"), (".", "names no form"), ("no/x.csv", "no dir")],
)
def test_paths(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        form_of(tmp_path / name)
