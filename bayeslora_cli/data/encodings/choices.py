"""Turns rows of multiple choice into token ids: sequences in which each choice is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_cli.data.encodings import dialogues
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.choice import continued
from bayeslora_cli.tasks.sources.choice_tasks.questions import choices_from_text
from bayeslora_cli.tasks.task import Examples

_OF_TOKENS = ("tokens", "counted", "scored")
_UNCUT = 2**31 - 1  # tokens; sequences are cut here, at their beginning


def encode(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Tokenise rows of multiple choice as `dialogues.encode` does, without an end of sequence.

    Each choice is a sequence, the prompt and the choice. Where the choices of a row are one token
    each, behind the same tokens, as letters are, the row is one sequence with all of them at its
    end: each is predicted from the prompt's last place, and none is before another's prediction.

    Sequences longer than `max_length` lose the beginning of their prompt, but not a
    beginning-of-sequence token: their end is what is scored.

    Args:
        examples: n rows with choices in `second`, or rows of `Choice.training_rows`, which are one
            sequence each.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per sequence.

    Returns:
        `tokens`, `offsets`, `whole` and `counted` as `dialogues.encode` returns them; for rows with
        choices also `scored` and `cells` of a `TokenisedSplit`, the last as
        `Choice.arranged` takes it.
    """
    if examples.second is None:
        found = dialogues.encode(examples, tokenizer, _UNCUT, ends=False)
        return _last(found, tokenizer, max_length)
    choices = [choices_from_text(text) for text in examples.second]
    rows = [row for row, own in enumerate(choices) for _ in own]
    sequences = replace(
        examples,
        first=[
            continued(prompt, choice)
            for prompt, own in zip(examples.first, choices, strict=True)
            for choice in own
        ],
        second=None,
        labels=None,
        groups=None,
        place=lambda sequence: examples.where(rows[sequence]),
    )
    found = dialogues.encode(sequences, tokenizer, _UNCUT, ends=False)
    sizes = [[max(1, choice.size) for choice in own] for own in choices]
    return _last(_joined(found, sizes), tokenizer, max_length)


def _joined(found: dict[str, Tensor], sizes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Put the choices of a row into one sequence where `encode` says so; add what scores them.

    Args:
        found: what `dialogues.encode` returned for a sequence of each choice.
        sizes: by row and choice.
    """
    most = max(map(len, sizes))
    tokens, offsets = found["tokens"].numpy(), found["offsets"].numpy()
    marks, whole = found["counted"].numpy(), found["whole"].numpy()
    parts: list[NDArray[np.int32]] = []
    counted: list[NDArray[np.bool_]] = []
    scored: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    cells: list[list[int]] = []
    first = 0
    for row, own in enumerate(sizes):
        last, k = first + len(own), len(own)
        ids = [tokens[offsets[s] : offsets[s + 1]] for s in range(first, last)]
        aims = [marks[offsets[s] : offsets[s + 1]] for s in range(first, last)]
        if all(_ends_alike(ids[0], other, aim) for other, aim in zip(ids, aims, strict=True)):
            prompt = len(ids[0]) - 1
            parts.append(np.concatenate((ids[0][:-1], [other[-1] for other in ids])))
            counted.append(np.arange(prompt + k) >= prompt)
            column = np.maximum(np.arange(prompt + k) - prompt, 0)
            scored.append(np.stack((column, column + 1), 1))
            lengths.append(int(whole[first]) - 1 + k)
            cells.append([row, *own, *[0] * (most - k)])
        else:
            for place, (sequence, aim) in enumerate(zip(ids, aims, strict=True)):
                parts.append(sequence)
                counted.append(aim)
                scored.append(np.tile((place, 1), (len(sequence), 1)))
                lengths.append(int(whole[first + place]))
                cells.append([row, *(size * (c == place) for c, size in enumerate(own)),
                              *[0] * (most - k)])  # fmt: skip
        first = last
    return {
        "tokens": torch.from_numpy(np.concatenate(parts).astype(np.int32)),
        "offsets": torch.from_numpy(np.cumsum([0, *map(len, parts)], dtype=np.int64)),
        "whole": torch.tensor(lengths),
        "counted": torch.from_numpy(np.concatenate(counted)),
        "scored": torch.from_numpy(np.concatenate(scored)),
        "cells": torch.tensor(cells),
    }


def _ends_alike(
    one: NDArray[np.int32], other: NDArray[np.int32], counted: NDArray[np.bool_]
) -> bool:
    """Return whether two sequences differ at most in their last token, the only one that counts."""
    same = len(one) == len(other) > 1 and bool((one[:-1] == other[:-1]).all())
    return same and bool(counted[-1]) and int(counted.sum()) == 1


def _last(found: dict[str, Tensor], tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """Return the last `max_length` tokens of each sequence, behind its beginning-of-sequence.

    Raises:
        UserError: not all that is scored would be left, and a token in front of it.
    """
    offsets = found["offsets"]
    if int(offsets.diff().max()) <= max_length:
        return found
    kept: list[Tensor] = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        begins = int(found["tokens"][start]) == tokenizer.bos_token_id
        first = max(start + begins, end - max_length + begins)
        aim = start + int(found["counted"][start:end].int().argmax())
        if first + 1 > aim and first > start + begins:
            raise UserError(
                f"--max-length {max_length}: a choice, or the letters of a row, take "
                f"{end - aim} tokens, and one of the prompt must stand before them; raise it"
            )
        kept.append(torch.cat((torch.arange(start, start + begins), torch.arange(first, end))))
    places = torch.cat(kept)
    lengths = offsets.diff().clamp(max=max_length)
    cut = {name: x[places] for name, x in found.items() if name in _OF_TOKENS}
    return {**found, **cut, "offsets": torch.cat((offsets[:1], lengths.cumsum(0)))}
