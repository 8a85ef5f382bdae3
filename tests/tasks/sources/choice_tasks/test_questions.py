"""Prompts and continuations of questions."""

from __future__ import annotations

import pytest

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.sources.choice_tasks.questions import (
    Continuation,
    Question,
    answers,
    choices_from_text,
    choices_to_text,
    described,
    examples_of,
    filled_blank,
    letters,
)

SKY = Question(text="What is blue?", choices=("grass", "the sky"), answer=1, group="stem/x")
SUN = Question(text="What is hot?", choices=("ice", "the sun"), answer=1, group="stem/x")


def prompts(examples):
    return ["".join(turn.text for turn in from_text(text)) for text in examples.first]


def test_whole_answers():
    found = examples_of([SKY], answers("Question: {text}\nAnswer:"))
    assert prompts(found) == ["Question: What is blue?\nAnswer:"]
    assert choices_from_text(found.second[0]) == (Continuation(" grass"), Continuation(" the sky"))
    assert (found.labels, found.groups) == ([1], ["stem/x"])


def test_letters():
    found = examples_of([SKY], letters("{text}"))
    assert prompts(found) == ["What is blue?\nA. grass\nB. the sky\nAnswer:"]
    assert [c.text for c in choices_from_text(found.second[0])] == [" A", " B"]


def test_shots_stand_between_the_introduction_and_the_question():
    found = examples_of(
        [SKY],
        letters("{text}"),
        shots={"stem/x": [SUN, SKY], "stem/y": [SKY]},
        introduction=lambda question: described("high_school_physics"),
    )
    assert prompts(found) == [
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "What is hot?\nA. ice\nB. the sun\nAnswer: B\n\n"
        "What is blue?\nA. grass\nB. the sky\nAnswer:"
    ]


def test_a_blank_is_filled_and_the_rest_is_scored():
    question = Question(text="Tom met Max so _ ran home.", choices=("Tom", "Max"), answer=0)
    text, choices = filled_blank(question)
    assert text == "Tom met Max so "
    assert choices == (
        Continuation(" ran home.", given="Tom"), Continuation(" ran home.", given="Max"),
    )  # fmt: skip
    assert choices_from_text(choices_to_text(choices)) == choices


def test_a_passage_stands_in_front():
    question = Question(text="is it", choices=("no", "yes"), answer=1, passage="It is.")
    assert answers("Question: {text}?\nAnswer:")(question)[0] == "It is.\nQuestion: is it?\nAnswer:"
    listed = "It is.\nQuestion: is it?\nA. no\nB. yes\nAnswer:"
    assert letters("Question: {text}?")(question)[0] == listed


def test_sizes_are_bytes_without_the_leading_space():
    assert [Continuation(text).size for text in (" grass", " é", "x", " ")] == [5, 2, 1, 0]


def test_braces_of_a_question_are_text():
    question = Question(text="{choices} {0}", choices=("a", "b"), answer=0)
    assert answers("Q: {text}")(question)[0] == "Q: {choices} {0}"


def test_unknown_answers():
    unknown = Question(text="?", choices=("a", "b"), answer=None)
    assert examples_of([unknown], letters("{text}")).labels is None
    with pytest.raises(DataError, match="not known"):
        examples_of([SKY], letters("{text}"), shots={"stem/x": [unknown]})
