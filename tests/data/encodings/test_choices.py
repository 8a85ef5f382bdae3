"""Rows of multiple choice become sequences in which each choice is scored."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.data.encodings.choices import encode
from bayeslora_cli.data.packing import pack
from bayeslora_cli.data.splits import truncation_notice
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.choice_tasks.questions import (
    Question,
    answers,
    examples_of,
    filled_blank,
    letters,
)
from tests.support.chats import byte_tokenizer

CHOICE = build_objective("choice", ("A", "B", "C"))
TWO = Question(text="Hot?", choices=("ice", "sun"), answer=1)
THREE = Question(text="Blue?", choices=("sky", "é", "a b"), answer=0)


@pytest.fixture(scope="module")
def tokenizer():
    """A token per byte, and one for each letter with its space."""
    return byte_tokenizer(begin=True, words=(" A", " B", " C"))


def sequences(found, tokenizer):
    """Of each sequence its text, and what counts: column, distance, text."""
    result = []
    for first, last in zip(found["offsets"][:-1], found["offsets"][1:], strict=True):
        ids, marks = found["tokens"][first:last], found["counted"][first:last]
        scored = found["scored"][first:last][marks].tolist()
        texts = [tokenizer.decode([i]) for i in ids[marks]]
        result.append((tokenizer.decode(ids), list(zip(scored, texts, strict=True))))
    return result


def test_letters_share_a_sequence(tokenizer):
    found = encode(examples_of([THREE, TWO], letters("{text}")), tokenizer, 1000)
    one, two = sequences(found, tokenizer)
    assert one[0].endswith("C. a b\nAnswer: A B C")
    assert one[1] == [([0, 1], " A"), ([1, 2], " B"), ([2, 3], " C")]
    assert two[1] == [([0, 1], " A"), ([1, 2], " B")]
    assert found["cells"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]


def test_whole_answers_have_a_sequence_each(tokenizer):
    found = encode(examples_of([TWO, THREE], answers("{text}")), tokenizer, 1000)
    texts = sequences(found, tokenizer)
    assert [text.removeprefix("<|begin|>") for text, _ in texts] == [
        "Hot? ice", "Hot? sun", "Blue? sky", "Blue? é", "Blue? a b",
    ]  # fmt: skip
    assert texts[1][1] == [([1, 1], c) for c in " sun"]
    assert found["cells"].tolist() == [
        [0, 3, 0, 0], [0, 0, 3, 0], [1, 3, 0, 0], [1, 0, 2, 0], [1, 0, 0, 3],
    ]  # fmt: skip


def test_what_is_given_does_not_count(tokenizer):
    blank = Question(text="So _ ran.", choices=("Tom", "Max"), answer=0)
    found = encode(examples_of([blank], filled_blank), tokenizer, 1000)
    (text, scored), (other, _) = sequences(found, tokenizer)
    assert text.endswith("So Tom ran.")
    assert other.endswith("So Max ran.")
    assert "".join(c for _, c in scored) == " ran."


def test_training_rows_end_with_the_right_choice(tokenizer):
    rows = CHOICE.training_rows(examples_of([TWO, THREE], letters("{text}")))
    split = tokenise(rows, tokenizer, 1000, CHOICE)
    assert (split.cells, split.scored) == (None, None)
    assert split.counts.tolist() == [1, 1]
    ends = split.tokens[split.offsets[1:] - 1]
    assert [tokenizer.decode([i]) for i in ends] == [" B", " A"]
    assert split.counted[split.offsets[1:] - 1].all()


def test_long_prompts_lose_their_beginning(tokenizer):
    found = encode(examples_of([THREE], answers("{text}")), tokenizer, 6)
    assert found["offsets"].diff().max() == 6
    assert sequences(found, tokenizer)[2][0] == "<|begin|>? a b"
    assert found["whole"].tolist() == [10, 9, 10]
    rows = CHOICE.training_rows(examples_of([THREE], answers("{text}")))
    assert encode(rows, tokenizer, 6)["counted"].tolist() == [False] * 2 + [True] * 4
    for short, form in ((5, answers("{text}")), (4, letters("{text}"))):
        with pytest.raises(UserError, match=f"--max-length {short}: a choice"):
            encode(examples_of([THREE], form), tokenizer, short)
    joined = encode(examples_of([TWO, THREE], letters("{text}")), tokenizer, 5)
    assert joined["counted"].tolist() == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 3


def test_what_is_cut_is_counted_by_rows_and_not_by_choices(tokenizer):
    long = Question(text="Hot? " * 5, choices=("ice", "sun"), answer=1)
    rows = examples_of([TWO, long, THREE], answers("{text}"))
    split = tokenise(rows, tokenizer, 16, CHOICE)
    assert (len(split), split.examples()) == (7, 3)
    assert split.truncated() == (1, 30)
    assert "1 of 3 rows of test are longer" in truncation_notice({"test": split}, 16)


def test_batches_predict_letters_from_the_prompts_last_place(tokenizer):
    split = tokenise(examples_of([TWO, THREE], letters("{text}")), tokenizer, 1000, CHOICE)
    packed = pack(split, torch.tensor([1, 0]), fixed=False)
    padded = split.batch(torch.tensor([1, 0]))
    last = packed["row_offsets"][1:].long() - torch.tensor([4, 3])  # behind it: 3 letters, 2
    assert packed["predicting"].tolist() == [int(last[0])] * 3 + [int(last[1])] * 2
    width = padded["input_ids"].shape[1]
    inside = [p % width for p in padded["predicting"].tolist()]
    assert inside == [int(last[0])] * 3 + [int(last[1] - packed["row_offsets"][1])] * 2
    for batch in (packed, padded):
        assert batch["columns"].tolist() == [0, 1, 2, 0, 1]
        assert tokenizer.decode(batch["targets"]) == " A B C A B"
