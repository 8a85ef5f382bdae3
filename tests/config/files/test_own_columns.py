"""The columns of a file say what it is for, before it is read."""

from __future__ import annotations

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from bayeslora_cli.config.catalogue import OBJECTIVES, implementation
from bayeslora_cli.config.files.own_columns import column_names, kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.tasks.sources.rows import choices, dialogues
from bayeslora_cli.tasks.sources.table_reader import read_table


def lines(tmp_path, *names):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(names, "x")) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["messages", "id"], "causal"),
        (["prompt", "completion"], "causal"),
        (["instruction", "input", "output"], "causal"),
        (["text"], "causal"),
        (["text", "label"], None),
        (["messages", "label"], "causal"),
        (["instruction", "context", "response", "category"], "causal"),
        (["question", "options", "answer", "category"], "choice"),
        (["sentence1", "sentence2"], None),
    ],
)
def test_kinds_of_files(tmp_path, names, kind):
    assert kind_of(lines(tmp_path, *names)) == kind


@pytest.mark.parametrize("kind", ["causal", "choice"])
def test_the_catalogue_knows_the_columns_that_are_read(kind, tmp_path):
    """Two lists of one fact, form by form: both find the kind of a file by its columns."""
    entry = OBJECTIVES[kind]
    reader = implementation(entry.rows)
    for columns in entry.columns:
        table = read_table(lines(tmp_path, *columns), "--train-file", split="train")
        assert reader.columns(table, None) is not None, columns
    if kind == "causal":
        read = [(name,) for name in dialogues._CHATS]
        read += [*dialogues._COMPLETIONS, (dialogues._TEXT,)]
        first, _, outputs = dialogues._INSTRUCTIONS
        read += [(first, output) for output in outputs]
    else:
        texts = [*((name,) for name in choices._CHOICES), ("A", "B")]
        read = [(question, *names) for question in choices._QUESTIONS for names in texts]
    assert set(read) == set(entry.columns)


def test_columns_of_every_format(tmp_path):
    rows = [{"text": "a,b", "id": 1}]
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "r.csv").write_text('\ufefftext,id\n"a,b",1\n', encoding="utf-8")
    (tmp_path / "r.tsv").write_text("text\tid\r\na\t1\r\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    for suffix in ("json", "csv", "tsv", "parquet"):
        assert column_names(str(tmp_path / f"r.{suffix}")) == ("text", "id"), suffix


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"\xff\xfe",
        b"{",
        b"3",
        pytest.param(b"x" * 2**18, id="a field without an end"),
        pytest.param(b"[" * 5000, id="nested too deeply"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_files_that_cannot_be_read_have_no_columns_that_count(tmp_path, content, suffix):
    path = tmp_path / f"r.{suffix}"
    path.write_bytes(content)
    assert kind_of(str(path)) is None
    assert kind_of(str(tmp_path)) is None
    assert kind_of("owner/name:config@split") is None
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert kind_of(str(tmp_path / "pipe.jsonl")) is None


def test_a_file_of_chats_gets_the_settings_of_causal_models(tmp_path):
    path = lines(tmp_path, "messages")
    found = resolve({"train_file": path})
    assert found.sources["max_length"] == "preset causal"
    assert found.config.task == "custom"
    assert found.changed.keys() == {"train_file"}
    typed = resolve({"train_file": path, "task_type": "classification"})
    assert typed.sources["max_length"] == "preset custom"
    other = resolve({"train_file": lines(tmp_path, "q", "a"), "task_type": "causal"})
    assert other.sources["max_length"] == "preset causal"
    labelled = resolve({"train_file": lines(tmp_path, "text", "y"), "label_column": "y"})
    assert labelled.sources["max_length"] == "preset custom"
