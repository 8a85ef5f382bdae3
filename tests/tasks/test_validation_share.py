"""Rows are held out by their content."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.task import Examples
from bayeslora_cli.tasks.validation_share import (
    digests_of,
    draw,
    number_found,
    parted,
    take,
)


def rows(texts, labels=None):
    return Examples(list(texts), None, labels, place=lambda row: f"line {row}")


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=80).filter(lambda found: len(set(found)) > 1),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_each_row_is_on_one_side_and_equal_rows_together(numbers, share, by_label):
    found = rows(map(str, numbers), [number % 3 for number in numbers])
    train, held = parted(found, draw(found, share, by_label=by_label))
    assert len(train)
    assert len(held)
    assert Counter(train.first) + Counter(held.first) == Counter(found.first)
    assert not set(train.first) & set(held.first)
    if len(set(numbers)) == len(numbers):
        assert len(held) <= max(1, share * len(found) + 3)


def test_the_share_is_met_and_the_order_of_rows_does_not_matter():
    texts = [f"row {n}" for n in range(1000)]
    held = draw(rows(texts), 0.1, by_label=False)
    assert len(held) == 100
    random.Random(0).shuffle(texts)
    assert draw(rows(texts), 0.1, by_label=False) == held


def test_labels_keep_their_share():
    labels = [0] * 900 + [1] * 100
    found = rows([f"row {n}" for n in range(1000)], labels)
    _, held = parted(found, draw(found, 0.1, by_label=True))
    assert Counter(held.labels) == {0: 90, 1: 10}


def test_rows_that_come_later_do_not_change_what_was_held_out():
    before = rows([f"row {n}" for n in range(100)])
    held = draw(before, 0.1, by_label=False)
    after = rows([f"new {n}" for n in range(50)] + before.first)
    assert parted(after, held)[1].first == parted(before, held)[1].first


def test_rows_keep_their_places_and_columns():
    found = Examples(["a", "b"], ["c", "d"], [0, 1], place=lambda row: f"line {row + 7}")
    found.groups = ["x", "y"]
    second = take(take(found, [1, 0]), [0])
    assert (second.first, second.second, second.labels, second.groups) == (["b"], ["d"], [1], ["y"])
    assert second.where(0) == "line 8"


def test_rows_that_are_all_the_same():
    with pytest.raises(DataError, match="--validation: the training rows are all the same"):
        draw(rows(["a"] * 20), 0.1, by_label=False)


def answers(prompts):
    return Examples(
        [f"row {n}" for n in range(len(prompts))], None, None, prompts=[f"ask {p}" for p in prompts]
    )


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.floats(0.05, 0.95))
def test_answers_to_one_prompt_stay_together(prompts, share):
    found = answers(prompts)
    drawn = draw(found, share, by_label=False)
    train, held = parted(found, drawn)
    assert len(train)
    assert len(held)
    assert number_found(found, drawn) == len(drawn)
    assert Counter(train.first) + Counter(held.first) == Counter(found.first)
    # unless so few prompts have so many rows that only rows can be drawn
    if set(train.prompts) & set(held.prompts):
        assert len(drawn) == len(held)
        assert max(Counter(prompts).values()) > share * len(prompts) / 2


def test_one_prompt_of_all_rows_tells_none_apart():
    found = answers([0] * 100)
    _, held = parted(found, draw(found, 0.1, by_label=False))
    assert len(held) == 10


def test_rows_that_an_earlier_version_held_out_are_found_again():
    """It drew rows, whatever their prompts."""
    found = answers([0, 0, 1, 1, 2, 2])
    drawn = digests_of(found)[1:3]
    _, held = parted(found, drawn)
    assert held.first == ["row 1", "row 2"]
    assert number_found(found, [*drawn, "0" * 16]) == 2
