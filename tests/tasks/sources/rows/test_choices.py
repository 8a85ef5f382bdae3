"""Questions with choices are read from tables, and what is amiss with them."""

from __future__ import annotations

import json

import pytest

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.sources.choice_tasks.questions import choices_from_text
from bayeslora_cli.tasks.sources.rows.choices import CHOICES
from bayeslora_cli.tasks.sources.table_reader import read_table

ROW = {"question": "Which is red?", "choices": ["sky", "blood"], "answer": 1}


def read(path, *, labelled=True):
    table = read_table(str(path), "--train-file", split="train")
    columns = CHOICES.columns(table, None)
    return columns and CHOICES.read(table, columns, loss_on="completions", labelled=labelled)


def lines(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("answer", [1, "blood", "B", "1"])
def test_answers_are_choices_letters_or_places(tmp_path, answer):
    found = read(lines(tmp_path, {**ROW, "answer": answer}))
    assert found.labels == [1]
    ((turn,),) = map(from_text, found.first)
    assert turn.text == "Question: Which is red?\nA. sky\nB. blood\nAnswer:"
    assert [c.text for c in choices_from_text(found.second[0])] == [" A", " B"]


def test_names_of_choices_as_the_hub_has_them(tmp_path):
    choices = {"text": ["sky", "blood"], "label": ["1", "2"]}
    row = {"id": "x", "question": "Which?", "choices": choices, "answerKey": "2"}
    assert read(lines(tmp_path, row)).labels == [1]


def test_a_column_per_choice_and_groups(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("question,subject,A,B,C,answer\nWhich?,art,a,b,c,C\nNo?,law,a,b,,A\n")
    found = read(path)
    assert found.labels == [2, 0]
    assert found.groups == ["art", "law"]
    assert [len(choices_from_text(text)) for text in found.second] == [3, 2]


def test_rows_without_answers_can_be_read(tmp_path):
    row = {"question": "Which?", "choices": ["a", "b"]}
    assert read(lines(tmp_path, row), labelled=None).labels is None
    with pytest.raises(DataError, match="has no column of answers beside question, choices"):
        read(lines(tmp_path, row))


@pytest.mark.parametrize("columns", [["question"], ["question", "answer"], ["choices", "answer"]])
def test_other_tables_are_not_taken(tmp_path, columns):
    assert read(lines(tmp_path, dict.fromkeys(columns, "x"))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["blood"], "answer": 0}, "found 1 choice; expected 2 to 26"),
        ({"choices": []}, "found 0 choices; expected 2 to 26"),
        ({"choices": ["a"] * 27}, "found 27 choices"),
        ({"choices": ["a", "a"]}, "found the choice 'a' twice"),
        ({"choices": "red"}, "found 'red' as choices; expected a list of texts"),
        ({"choices": "[" * 5000}, r"found '\[.* as choices; expected a list of texts"),
        ({"choices": [1, 2]}, r"found \[1, 2\] as choices; expected a list of texts"),
        ({"answer": 2}, r"found the answer 2 .* none of its 2 choices; .* letter \(A to B\)"),
        ({"answer": "C"}, "found the answer 'C' in the column 'answer', which is none of its 2"),
        ({"answer": None}, "found the answer None"),
        ({"answer": -1}, "found the answer -1"),
        ({"answer": ""}, "found the answer ''"),
        ({"answer": True}, "found the answer True"),
        ({"question": 3}, "found 3 in the column 'question'"),
    ],
)
def test_rows_that_are_none(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read(lines(tmp_path, ROW, {**ROW, **change}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("question",), "asked for the columns 'question'; expected question, choices and answer"),
        (("question", "choices", "answer"), "of which 'answer' holds the answer; name only those"),
    ],
)
def test_columns_that_are_no_question_with_choices(tmp_path, asked, message):
    """Of a csv file, whose lists are texts, the answer would be the last choice of each row."""
    path = tmp_path / "rows.csv"
    path.write_text('question,choices,answer\nq,"[""a"", ""b""]",a\n')
    with pytest.raises(DataError, match=message):
        CHOICES.columns(read_table(str(path), "--train-file", split="train"), asked, sure=True)
