"""Rows of the tasks by name: layouts, splits, prompts, shots."""

from __future__ import annotations

import datasets
import pytest

from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import (
    TASKS,
    check_trainable,
    load_choices,
    load_to_score,
)
from bayeslora_cli.tasks.sources.choice_tasks.questions import choices_from_text
from tests.tasks.sources.choice_tasks.files import write_arc, write_mmlu

ARC, MMLU = TASKS["arc-easy"], TASKS["mmlu"]


def prompt(examples, row=0):
    return "".join(turn.text for turn in from_text(examples.first[row]))


def continuations(examples, row=0):
    return [c.given + c.text for c in choices_from_text(examples.second[row])]


def test_whole_answers_and_letters(tmp_path):
    write_arc(tmp_path)
    found = load_choices(ARC, tmp_path, ("train", "validation"))
    assert found.keys() == {"train"}
    assert prompt(found["train"], 1) == "Question: Which is w1?\nAnswer:"
    assert continuations(found["train"], 1) == [" w1", " w2", " w3", " w4"]
    assert found["train"].labels[:4] == [0, 1, 2, 0]
    assert found["train"].groups is None
    lettered = ARC.scored_as("letters")
    assert (ARC.metrics, lettered.metrics) == (("accuracy", "accuracy_norm"), ("accuracy",))
    found = load_choices(lettered, tmp_path, ("train",))
    assert prompt(found["train"]) == "Question: Which is w0?\nA. w0\nB. w1\nC. w2\nAnswer:"
    assert continuations(found["train"]) == [" A", " B", " C"]


def test_mmlu_asks_as_its_authors_do(tmp_path):
    write_mmlu(tmp_path)
    (found,) = load_to_score(MMLU, tmp_path, None, shots=2).values()
    assert prompt(found, 3) == (
        "The following are multiple choice questions (with answers) about philosophy.\n\n"
        "dev w0, philosophy?\nA. w1\nB. w2\nC. w3\nD. w4\nAnswer: A\n\n"
        "dev w1, philosophy?\nA. w1\nB. w2\nC. w3\nD. w4\nAnswer: B\n\n"
        "test w0, philosophy?\nA. w1\nB. w2\nC. w3\nD. w4\nAnswer:"
    )
    assert found.groups[3] == "humanities/philosophy"
    with pytest.raises(UserError, match=r"--shots 4: the split 'dev' of mmlu has 3"):
        load_to_score(MMLU, tmp_path, None, shots=4)
    whole = load_to_score(MMLU.scored_as("answers"), tmp_path, "validation")["validation"]
    assert prompt(whole) == "Question: val w0, astronomy?\nAnswer:"


def test_a_question_is_no_example_of_itself(tmp_path):
    write_arc(tmp_path)
    found = load_choices(ARC, tmp_path, ("train",), shots=2)["train"]
    assert prompt(found).count("Question:") == 2
    assert prompt(found, 5).count("Question:") == 3


def test_sets_without_training_rows_are_for_eval(tmp_path):
    write_mmlu(tmp_path)
    with pytest.raises(UserError, match=r"--task mmlu.*bayeslora eval RUN --task mmlu"):
        check_trainable(MMLU, tmp_path, load_choices(MMLU, tmp_path, ("train", "dev")))
    with pytest.raises(UserError, match="no training split"):
        check_trainable(TASKS["winogrande"], None, ("test",))


def test_absent_data(tmp_path):
    with pytest.raises(DataError, match="holds no data for task piqa"):
        load_choices(TASKS["piqa"], tmp_path, ("train",))
    with pytest.raises(DataError, match="no such directory"):
        load_choices(TASKS["piqa"], tmp_path / "none", ("train",))
    with pytest.raises(UserError, match="cannot be loaded from the Hugging Face hub"):
        load_choices(TASKS["piqa"], None, ("train",))
    write_arc(tmp_path)
    with pytest.raises(DataError, match="has no split validation"):
        load_to_score(ARC, tmp_path, "validation")


CHOICES = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
HUB_ROWS = {
    "mmlu": {"question": " q ", "subject": "astronomy", "choices": ["a", "b", "c"], "answer": 1},
    "arc-easy": {"question": "q", "choices": CHOICES, "answerKey": "2"},
    "openbookqa": {"question_stem": "q", "choices": CHOICES, "answerKey": " 2"},
    "boolq": {"question": "q", "passage": "p", "answer": True},
    "winogrande": {"sentence": "s _ t", "option1": "a", "option2": "b", "answer": "2"},
    "piqa": {"goal": "q", "sol1": "a", "sol2": "b", "label": 1},
    "siqa": {
        "context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "c",
        "label": "2",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HUB_ROWS)
def test_columns_of_the_hub(tmp_path, name):
    table = datasets.Dataset.from_list([HUB_ROWS[name]])
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / name)
    found = load_to_score(TASKS[name].scored_as("letters"), tmp_path, None)["test"]
    assert found.labels == [1]
    assert "\nB. " in prompt(found)
    datasets.DatasetDict({"test": table.remove_columns(table.column_names[-1:])}).save_to_disk(
        tmp_path / "less" / name
    )
    with pytest.raises(DataError, match="test, row 0: not as expected"):
        load_to_score(TASKS[name], tmp_path / "less", None)


@pytest.mark.parametrize(("name", "answer"), [("siqa", {"label": "0"}), ("mmlu", {"answer": 3})])
def test_an_answer_that_is_no_choice(tmp_path, name, answer):
    table = datasets.Dataset.from_list([HUB_ROWS[name] | answer])
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / name)
    with pytest.raises(DataError, match=r"row 0: not as expected: .* none of 3 choices"):
        load_to_score(TASKS[name], tmp_path, None)


def test_a_test_split_without_answers_is_not_scored(tmp_path):
    row = {"goal": "q", "sol1": "a", "sol2": "b"}
    datasets.DatasetDict({
        "test": datasets.Dataset.from_list([{**row, "label": -1}]),
        "validation": datasets.Dataset.from_list([{**row, "label": 0}]),
    }).save_to_disk(tmp_path)  # fmt: skip
    piqa = TASKS["piqa"]
    assert load_to_score(piqa, tmp_path, None).keys() == {"validation"}
    assert load_to_score(piqa, tmp_path, "test")["test"].labels is None
