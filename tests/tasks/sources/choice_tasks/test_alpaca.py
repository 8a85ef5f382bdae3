"""Questions out of instructions in alpaca form."""

from __future__ import annotations

import json

import pytest

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.choice_tasks.alpaca import find_folder, read_split
from tests.tasks.sources.choice_tasks.files import alpaca_row, write_arc


def written(folder, *rows):
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    return read_split(folder, "test")


def test_a_question_and_its_choices_are_found(tmp_path):
    (question,) = written(tmp_path, alpaca_row("Which? Answer2: none", ["a b", "c", "d\n"], 2))
    assert question.text == "Which? Answer2: none"
    assert question.choices == ("a b", "c", "d")
    assert question.answer == 2


def test_true_and_false_become_yes_and_no(tmp_path):
    row = {
        "instruction": "Please answer the following question with true or false, question: is it "
        "so?\n\nAnswer format: true/false",
        "answer": "false",
    }
    (question,) = written(tmp_path, row)
    assert (question.text, question.choices, question.answer) == ("is it so", ("no", "yes"), 0)


def test_options_of_a_sentence(tmp_path):
    row = {
        "instruction": "Please choose the correct answer to fill in the blank to complete the "
        "given sentence: Tom met Max so _ ran.\n\nOption1: Tom Option2: Max Answer format: "
        "option1/option2",
        "answer": "option2",
    }
    (question,) = written(tmp_path, row)
    assert question.text == "Tom met Max so _ ran."
    assert (question.choices, question.answer) == (("Tom", "Max"), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Say something", "answer": "a"}, "row 0: found .*Answer format"),
        ("text", "row 0"),
        (alpaca_row("?", ["a", "b"], 0) | {"answer": "answer3"}, "'answer3'; expected one of"),
        (
            {"instruction": "Q\n\nAnswer1: a\n\nAnswer format: answer1/answer2",
             "answer": "answer1"},
            "no 'Answer2'",
        ),
    ],
)  # fmt: skip
def test_other_rows_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        written(tmp_path, row)


def test_files_that_are_no_array(tmp_path):
    (tmp_path / "test.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="JSON array"):
        read_split(tmp_path, "test")
    (tmp_path / "test.json").write_text("[")
    with pytest.raises(DataError, match="JSON"):
        read_split(tmp_path, "test")


def test_the_folder_is_found(tmp_path):
    assert find_folder(tmp_path, "ARC-Easy") is None
    write_arc(tmp_path / "llm_adapters")
    for data in (tmp_path, tmp_path / "llm_adapters", tmp_path / "llm_adapters" / "ARC-Easy"):
        assert find_folder(data, "ARC-Easy").name == "ARC-Easy"
    assert read_split(tmp_path / "llm_adapters" / "ARC-Easy", "validation") is None
