"""Rows of which nothing counts are left out, and a user sees what counts."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from bayeslora_cli.data.counted_rows import (
    check_counts,
    counted_facts,
    counted_text,
    example_text,
    with_loss,
)
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import Turn, to_text
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.task import Examples
from tests.support.chats import byte_tokenizer

CAUSAL = build_objective("causal", ())


def split(rows, max_length=12, tokenizer=None) -> tuple[TokenisedSplit, Examples]:
    texts = [to_text((Turn("", a, False), Turn("", b, True))) for a, b in rows]
    examples = Examples(texts, None, [0] * len(rows), place=lambda row: f"f.jsonl, line {row + 1}")
    found = tokenise(examples, tokenizer or byte_tokenizer(), max_length, CAUSAL)
    return replace(found, packed=True), examples


ROWS = [("a" * 20, "b"), ("ab", "cd"), ("c" * 12, "d"), ("efg", "h")]


def test_rows_whose_answers_are_cut_away_are_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        found = with_loss(*split(ROWS), 12)
    assert "2 of 4 rows of train are left out" in caplog.text
    assert "are cut away at --max-length 12 (f.jsonl, line 1, for one)" in caplog.text
    kept, _ = split([ROWS[1], ROWS[3]])
    for name in ("tokens", "offsets", "counted", "counts", "whole", "labels"):
        assert torch.equal(getattr(found, name), getattr(kept, name)), name
    assert found.left_out == 2


def test_rows_that_all_count_stay_as_they_are():
    whole, rows = split(ROWS[1:2])
    assert with_loss(whole, rows, 12) is whole


def test_no_row_is_left():
    with pytest.raises(DataError, match=r"f\.jsonl, line 1: nothing of this or any other row"):
        check_counts(*split(ROWS[:1]), 12)
    check_counts(*split(ROWS), 12)


def test_a_plan_of_rows_that_count():
    train, _ = split(ROWS[1:2] + ROWS[3:])
    splits = {"train": train, "validation": split(ROWS)[0]}
    facts = counted_facts(splits, byte_tokenizer(), 2, 0)
    assert facts["tokens"]["train"] == {"all": 10, "counted": 5}
    assert facts["without_loss"] == {"train": 0, "validation": 2}
    assert facts["padded_tokens"] == 10  # both rows have 5
    assert facts["example"] == {
        "tokens": 5,
        "counted": 3,
        "parts": [{"text": "ab", "counted": False}, {"text": "cd<|end|>", "counted": True}],
    }
    assert example_text(facts)[1:] == ["  ab[[cd<|end|>]]"]
    assert any("2 rows" in line for line in counted_text(facts, 10))


def test_long_parts_are_shortened_and_no_control_character_is_printed():
    train, _ = split([("a\tb\x1b" + "c" * 2000 + "\n" + "é" * 90, "d")], max_length=5000)
    facts = counted_facts({"train": train}, byte_tokenizer(), 1, 0)
    lines = example_text(facts)
    assert all(line.isprintable() and len(line) <= 80 for line in lines)
    assert "\\x1b" in lines[1]
    assert "characters) ..." in "".join(lines)


def test_splits_of_other_kinds_have_nothing_of_this():
    train, _ = split(ROWS)
    facts = counted_facts({"train": replace(train, counted=None)}, None, 2, 0)
    assert facts == {}
    assert counted_text(facts, 10) == example_text(facts) == []
