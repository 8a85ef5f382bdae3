"""Rows of which only some tokens count in the loss: which are left out, and what a user sees."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.data.batching import epoch_order
from bayeslora_cli.data.tokenised_split import TokenisedSplit, row_sums
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.task import Examples

logger = logging.getLogger("bayeslora")

_WIDTH = 78  # columns of text that is shown
BEGIN, END = "[[", "]]"  # around what counts
_LONGEST_PART = 400  # characters of a part of a row that are shown


def check_counts(split: TokenisedSplit, rows: Examples, max_length: int) -> None:
    """Check that a token of a split counts, if its kind of task counts tokens.

    Args:
        rows: the split as text.
        max_length: the length that rows were cut to.
    Raises:
        DataError: none does: there would be no loss.
    """
    if split.counted is not None and not split.counted.any():
        raise DataError(
            f"{rows.where(0)}: nothing of this or any other row counts in the loss: the answers "
            f"are empty, or cut away at --max-length {max_length}"
        )


def with_loss(split: TokenisedSplit, rows: Examples, max_length: int) -> TokenisedSplit:
    """Return the rows of a split of which a token counts; how many are left out is said.

    Args:
        rows: the split as text.
        max_length: the length that rows were cut to.
    """
    assert split.counts is not None
    silent = (split.counts == 0).nonzero().flatten()
    if not len(silent):
        return split
    assert split.whole is not None
    cut = split.whole > split.lengths
    where, first = rows.where, int(silent[0])
    empty = "" if cut[silent].all() else "empty, or "
    why = f"their answers are {empty}cut away at --max-length {max_length}"
    logger.warning(
        "%d of %d rows of train are left out, as nothing of them counts in the loss: %s (%s, for "
        "one)",
        len(silent), len(split), why, where(first),
    )  # fmt: skip
    return replace(_selected(split, split.counts > 0), left_out=len(silent))


def _selected(split: TokenisedSplit, kept: Tensor) -> TokenisedSplit:
    """Return the rows that are `kept` (n,), in order."""
    inside = kept.repeat_interleave(split.lengths)
    of_tokens = {
        name: value[inside]
        for name in ("tokens", "token_types", "counted")
        if (value := getattr(split, name)) is not None
    }
    of_rows = {
        name: value[kept]
        for name in ("labels", "counts", "whole")
        if (value := getattr(split, name)) is not None
    }
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), split.lengths[kept].cumsum(0)))
    return replace(split, offsets=offsets, **of_tokens, **of_rows)


# ---- for a dry run


def counted_facts(
    splits: Mapping[str, TokenisedSplit],
    tokenizer: Any,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Describe rows of which tokens count, as a JSON object; {} if they are of another kind.

    Args:
        batch_size: rows of a training batch, to compare packed batches with padded ones.
        seed: the order of the first epoch is drawn from it.
    """
    train = splits["train"]
    if train.counted is None or train.counts is None or train.items is not None:
        return {}
    padded = 0
    for rows in torch.split(epoch_order(len(train), seed, 0), batch_size):
        padded += int(train.lengths[rows].max()) * len(rows)
    return {
        "tokens": {
            name: {"all": len(split.tokens), "counted": int(split.counted.sum())}
            for name, split in splits.items()
            if split.counted is not None
        },
        "without_loss": {
            name: split.left_out + int((row_sums(split.counted, split.offsets) == 0).sum())
            for name, split in splits.items()
            if split.counted is not None
        },
        "packed": train.packed,
        "padded_tokens": padded,
        "example": _example(train, tokenizer),
    }


def _example(split: TokenisedSplit, tokenizer: Any) -> dict[str, Any]:
    """Return the first row that is whole, as parts of text that count and that do not."""
    assert split.counted is not None
    assert split.whole is not None
    whole = (split.whole == split.lengths).nonzero().flatten()
    row = int(whole[0]) if len(whole) else 0
    place = slice(int(split.offsets[row]), int(split.offsets[row + 1]))
    ids, counted = split.tokens[place].tolist(), split.counted[place].tolist()
    parts = [
        {"text": tokenizer.decode([ids[i] for i in places]), "counted": counts}
        for counts, places in groupby(range(len(ids)), key=counted.__getitem__)
    ]
    return {"tokens": len(ids), "counted": sum(counted), "parts": parts}


def counted_text(found: Mapping[str, Any], width: int) -> list[str]:
    """Write what `counted_facts` found, as lines of the dry run's block on data."""
    if "padded_tokens" not in found:
        return []
    kept, padded = found["tokens"]["train"]["all"], found["padded_tokens"]
    share = f"{1 - kept / padded:.0%}"
    packing = (
        f"no padding: {share} fewer tokens than in padded batches"
        if found["packed"]
        else f"none: rows are padded to one length, {share} is padding"
    )
    return [
        *(
            f"  {f'tokens of {name}':{width}}  {count['all']:,}, of which {count['counted']:,} "
            "count in the loss"
            for name, count in found["tokens"].items()
        ),
        *(
            f"  {f'no loss in {name}':{width}}  {rows:,} row{'s' * (rows != 1)}"
            + (f", which {'is' if rows == 1 else 'are'} left out" if name == "train" else "")
            for name, rows in found["without_loss"].items()
            if rows
        ),
        f"  {'packing':{width}}  {packing}",
    ]


def example_text(found: Mapping[str, Any]) -> list[str]:
    """Write the example of `counted_facts` as a block, what counts between brackets."""
    if "example" not in found:
        return []
    example = found["example"]
    text = "".join(
        f"{BEGIN}{_shortened(part['text'])}{END}" if part["counted"] else _shortened(part["text"])
        for part in example["parts"]
    )
    return [
        f"A row to train on: {example['tokens']:,} tokens, of which {example['counted']:,} "
        f"count, between {BEGIN} and {END}",
        *(f"  {line}" for line in _printable(text)),
    ]


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_PART:
        return text
    half = _LONGEST_PART // 2
    # between words, where there are any
    first = text[:half].rpartition(" ")[0] or text[:half]
    last = text[-half:].partition(" ")[2] or text[-half:]
    left_out = len(text) - len(first) - len(last)
    return f"{first} ... ({left_out:,} characters) ... {last}"


def _printable(text: str) -> list[str]:
    """Split text into lines of at most `_WIDTH` characters, none of them a control character."""
    return [
        part
        for line in text.rstrip("\n").split("\n")
        for part in textwrap.wrap(
            "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line.expandtabs(4)),
            _WIDTH,
            break_on_hyphens=False,
        )
        or [""]
    ]
