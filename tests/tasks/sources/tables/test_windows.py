"""Rows are read in windows: the same rows as at once, in bounded memory, and as a pipe has them."""

from __future__ import annotations

import csv
import json
import os
import sys
import threading

import pyarrow
import pyarrow.parquet
import pytest

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tables import windows
from bayeslora_cli.tasks.sources.tables.windows import STDIN, object_windows, table_windows

ROWS = [
    {"id": i, "text": text}
    for i, text in enumerate(
        ["a b", 'say "x", y', "é\r\nz", "tab\tx", "=1", " ", "\u2028", "l"] * 3
    )
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(windows, "ROWS", 5)
    monkeypatch.setattr(windows, "_BYTES", 7)  # lines are put together from pieces


def write(path, form):
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif form == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=4)
    return str(path)


def columns(tables, name):
    return [value for table in tables for value in table.read_column(name)]


def test_windows_of_sentences(tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text("-DOCSTART- O\n\n" + "EU B-ORG\nrejects O\n\n\n" * 11 + "Oslo\tB-LOC")
    whole = read_table(str(path), "FILE", split="train")
    parts = list(table_windows(str(path), "FILE", ("text",)))
    assert [part.rows for part in parts] == [5, 5, 2]
    for name in ("tokens", "tags"):
        assert columns(parts, name) == whole.read_column(name)
    assert parts[1].where(0) == whole.where(5)
    path.write_text("EU B-ORG\n\nrejects\n")
    with pytest.raises(
        DataError, match=r"rows.conll, line 3: found 'rejects'; expected a word and"
    ):
        list(table_windows(str(path), "FILE", ("text",)))


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "parquet"])
def test_windows_hold_what_the_whole_table_holds(form, tmp_path):
    source = write(tmp_path / f"rows.{form}", form)
    whole = read_table(source, "FILE", split="train")
    parts = list(table_windows(source, "FILE", ("text",)))
    assert max(part.rows for part in parts) == 5
    for name in ("id", "text"):
        assert columns(parts, name) == whole.read_column(name)
    places = [part.where(row) for part in parts for row in range(part.rows)]
    assert places == [whole.where(row) for row in range(whole.rows)]


@pytest.fixture
def open_pipe(monkeypatch):
    """A pipe whose end is standard input, and which is written to."""
    opened = []

    def make():
        read, write_end = os.pipe()
        opened.append(os.fdopen(read))
        monkeypatch.setattr(sys, "stdin", opened[-1])
        return write_end

    yield make
    for file in opened:
        file.close()


@pytest.fixture
def pipe(open_pipe):
    def make(content):
        with os.fdopen(open_pipe(), "wb") as file:
            file.write(content)

    return make


def test_standard_input_is_text_or_json_lines(pipe):
    pipe(b'\xef\xbb\xbfone\n\n{"text": 3}\nlast')
    assert columns(table_windows(STDIN, "FILE", ("text",)), "text") == [
        "one", "", '{"text": 3}', "last"
    ]  # fmt: skip
    pipe(b'\n{"text": "a", "n": 1}\n{"text": "b"}\n')
    (table,) = table_windows(STDIN, "FILE", ("text",))
    assert table.read_column("n") == [1, None]
    pipe(b"{not json\n")
    assert columns(table_windows(STDIN, "FILE", ("text",)), "text") == ["{not json"]
    pipe(b"")
    assert list(table_windows(STDIN, "FILE", ("text",))) == []


def test_pairs_have_a_tab_between(pipe):
    pipe(b"a\tb\nc\td\n")
    (table,) = table_windows(STDIN, "FILE", ("first", "second"))
    assert table.read_column("second") == ["b", "d"]
    pipe(b"a\tb\nc\n")
    with pytest.raises(DataError, match=r"line 2: found 1 text; expected 2, first and second"):
        list(table_windows(STDIN, "FILE", ("first", "second")))


def test_a_slow_writer_gets_its_answers(open_pipe):
    write_end = open_pipe()
    answered = threading.Event()

    def write_slowly():
        os.write(write_end, b"one\ntwo\nthr")
        answered.wait(20)
        os.write(write_end, b"ee\n")
        os.close(write_end)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    found = table_windows(STDIN, "FILE", ("text",))
    assert next(found).read_column("text") == ["one", "two"]
    answered.set()
    assert next(found).read_column("text") == ["three"]
    writer.join()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"text\nfine\n\xff\n", "line 3: found the byte 0xff"),
        ("x.csv", b"text,b\na,b\na\n", "line 3: found 1 fields; expected 2"),
        ("x.csv", b"", "line 1: found no columns"),
        ("x.jsonl", b'{"text": "a"}\n3\n', "line 2: found '3'; expected a JSON object"),
        ("x.dat", b"a", "its ending tells no form"),
        ("x.parquet", b"a", "cannot be read as parquet"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(table_windows(str(path), "FILE", ("text",)))


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        table_windows(str(tmp_path / "none.csv"), "FILE", ("text",))
    with pytest.raises(DataError, match="is a directory"):
        table_windows(str(tmp_path), "FILE", ("text",))


def test_rows_from_python():
    rows = ["a", ("b",), {"text": "c", "id": 7}, *["d"] * 5]
    first, second = object_windows(iter(rows), "rows", ("text",))
    assert first.read_column("text") == ["a", "b", "c", "d", "d"]
    assert first.read_column("id")[2] == 7
    assert second.where(0) == "rows, row 5"
    with pytest.raises(DataError, match="row 0: found 2 texts"):
        list(object_windows([("a", "b")], "rows", ("text",)))
