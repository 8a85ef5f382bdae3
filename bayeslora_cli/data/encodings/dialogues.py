"""Turns dialogues into token ids, and marks the tokens whose prediction the loss counts.

A row's text is made first: raw text as it is, other turns by the tokenizer's chat template. The
whole text is tokenised at once, and what counts is found by the characters that each token covers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_cli.data.tokenization import pieces
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.dialogue import (
    ASSISTANT,
    INSTRUCTION,
    RAW,
    RESPONSE,
    TOOLS,
    USER,
    Dialogue,
    Turn,
    from_text,
)
from bayeslora_cli.tasks.task import Examples

_CHARACTERS_A_CALL = 1_000_000  # the offsets of a token take some 200 bytes
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # marks what the assistant says
_ONE_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""The date that Llama's templates have where they cannot know today's."""
_ANOTHER = "\ue000another text\ue000"  # stands in no chat
_PLAIN = {INSTRUCTION: "### Instruction:\n{}\n\n### Response:\n", RESPONSE: "{}"}
_SPEAKERS = {INSTRUCTION: USER, RESPONSE: ASSISTANT}

Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a row as the tokenizer gets it."""

    text: str
    """Raw text, or what the chat template made."""
    counted: Spans
    """First character and the one after the last of each part that the loss counts."""
    templated: bool
    """Whether a template made the text, with the special tokens that it wants."""
    ends: bool
    """Whether the end-of-sequence token follows, which then counts."""
    marks: NDArray[np.bool_] | None = None
    """(t,): which tokens of the text count, where the template's generation marks say it."""


def encode(
    examples: Examples, tokenizer: Any, max_length: int, *, ends: bool = True
) -> dict[str, Tensor]:
    """Tokenise dialogues, and find which of their tokens the loss counts.

    Raw text gets the tokenizer's own special tokens and, behind a counted last turn, the
    end-of-sequence token. Text of a chat template gets nothing besides. Rows longer than
    `max_length` lose their end.

    Args:
        examples: n rows whose `first` is text of `dialogue.to_text`.
        tokenizer: a `transformers` tokenizer.
        max_length: largest number of tokens per row, special tokens included.
        ends: whether the end-of-sequence token follows raw text.

    Returns:
        `tokens` (t,) int32, `offsets` (n + 1,) int64 and `whole` (n,) int64 of a `TokenisedSplit`;
        `counted` (t,) bool: whether the prediction of this token counts, False for a row's first.

    Raises:
        UserError: the tokenizer lacks a chat template, or the template cannot render a row.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{_name(tokenizer)} does not tell which characters its tokens cover, which finding "
            "the answers needs: choose a model with a tokenizer.json"
        )
    tokens: list[NDArray[np.int32]] = []
    counted: list[NDArray[np.bool_]] = []
    whole: list[int] = []
    for rows in pieces([examples.first], _CHARACTERS_A_CALL):
        rendered = [
            render(from_text(text), tokenizer, examples.where(row), ends=ends)
            for row, text in enumerate(examples.first[rows], rows.start)
        ]
        for ids, marks in _tokenised(rendered, tokenizer):
            whole.append(len(ids))
            tokens.append(ids[:max_length])
            counted.append(marks[:max_length])
    lengths = [len(ids) for ids in tokens]
    return {
        "tokens": torch.from_numpy(np.concatenate(tokens)),
        "offsets": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
        "whole": torch.tensor(whole, dtype=torch.int64),
        "counted": torch.from_numpy(np.concatenate(counted)),
    }


# ---- text


def render(turns: Dialogue, tokenizer: Any, where: str, *, ends: bool = True) -> Rendered:
    """Make the text of a row: turns with roles by the template, raw text behind them as it is.

    Args:
        where: the row's place, for messages.
        ends: whether the end-of-sequence token follows raw text whose last turn counts.
    Raises:
        UserError: the tokenizer lacks a chat template, or the template cannot render the row.
    """
    if any(turn.role in _PLAIN for turn in turns):
        turns = _with_speakers(turns, tokenizer)
    spoken = tuple(turn for turn in turns if turn.role != RAW)
    raw = turns[len(spoken) :]
    if any(turn.role != RAW for turn in raw):
        raise DataError(f"{where}: found raw text before a turn with a role")
    text, counted, marks = "", Spans(), None
    if spoken:
        text = _rendering(spoken, tokenizer, where, prompt=bool(raw))
        if all(turn.counted for turn in spoken):
            counted = [(0, len(text))]
        elif not raw and _GENERATION.search(tokenizer.get_chat_template()):
            marks = _generation_marks(spoken, tokenizer, where)
        else:
            counted = [
                _span(spoken, place, text, tokenizer, where)
                for place, turn in enumerate(spoken)
                if turn.counted
            ]
    for turn in raw:
        if turn.counted and turn.text:
            counted.append((len(text), len(text) + len(turn.text)))
        text += turn.text
    finished = ends and bool(raw) and raw[-1].counted
    return Rendered(text, counted, templated=bool(spoken), ends=finished, marks=marks)


def _with_speakers(turns: Dialogue, tokenizer: Any) -> Dialogue:
    """Make instructions and responses turns of a chat, or raw text if there is no template."""
    if tokenizer.chat_template:
        return tuple(
            Turn(_SPEAKERS.get(turn.role, turn.role), turn.text, turn.counted) for turn in turns
        )
    return tuple(
        Turn(RAW, _PLAIN.get(turn.role, "{}").format(turn.text), turn.counted) for turn in turns
    )


def _generation_marks(turns: Dialogue, tokenizer: Any, where: str) -> NDArray[np.bool_]:
    """Return which tokens of a chat count by the template's generation marks: (t,)."""
    found = tokenizer.apply_chat_template(
        **_inputs(turns, tokenizer, where),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marks = np.array(found["assistant_masks"], dtype=bool)
    answers = [turn.counted for turn in turns if turn.role == ASSISTANT]
    if not all(answers):  # some do not count: a run of marked tokens is an answer
        begins = marks & ~np.concatenate(([False], marks[:-1]))
        if int(begins.sum()) != len(answers):
            raise DataError(
                f"{where}: found {len(answers)} turns of the assistant, and {int(begins.sum())} "
                f"parts that the chat template of {_name(tokenizer)} marks, so those that do not "
                "count cannot be told from the others"
            )
        marks &= np.array([False, *answers])[begins.cumsum()]
    return marks


def _span(turns: Dialogue, place: int, text: str, tokenizer: Any, where: str) -> tuple[int, int]:
    """Return the span of one turn, by rendering the chat up to it and up to its end.

    Templates of models that think write an answer in another way once the chat goes on. Such a turn
    ends where another text in its place would.
    """
    assistant = turns[place].role == ASSISTANT
    before = _rendering(turns[:place], tokenizer, where, prompt=assistant) if place else ""
    until = _rendering(turns[: place + 1], tokenizer, where, prompt=False)
    if not text.startswith(until):
        until = _until(turns, place, text, tokenizer, where)
    if not (text.startswith(before) and until.startswith(before)):
        raise DataError(
            f"{where}: the chat up to turn {place + 1} ({turns[place].role}) is rendered by "
            f"{_name(tokenizer)} differently on its own than at the beginning of the whole chat, "
            "so what the assistant says cannot be found. Give the template {% generation %} marks, "
            "or chats with one answer each, or --loss-on all"
        )
    # nothing is predicted behind the token that ends the turn: a line break there does not count
    said = until.rstrip()
    special = any(said.endswith(token) for token in tokenizer.all_special_tokens)
    return len(before), max(len(before), len(said) if special else len(until))


def _until(turns: Dialogue, place: int, text: str, tokenizer: Any, where: str) -> str:
    """Return the whole chat's text up to the end of one turn; "" if it cannot be found."""
    changed = replace(turns[place], text=_ANOTHER)
    other = _rendering(
        (*turns[:place], changed, *turns[place + 1 :]), tokenizer, where, prompt=False
    )
    head, found, tail = other.partition(_ANOTHER)
    said = text.removeprefix(head).removesuffix(tail)
    if not found or head + said + tail != text:
        return ""
    end = next((token for token in tokenizer.all_special_tokens if tail.startswith(token)), "")
    return head + said + end


def _rendering(turns: Dialogue, tokenizer: Any, where: str, *, prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: found turns of a chat, and {_name(tokenizer)} has no chat template to "
            "render them with; choose a chat model, or give prompt and completion, or text"
        )
    inputs = _inputs(turns, tokenizer, where)
    try:
        found = tokenizer.apply_chat_template(
            **inputs, tokenize=False, add_generation_prompt=prompt
        )
    # a template is a program of its own: it raises what it likes
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{where}: the chat template of {_name(tokenizer)} refuses the turns "
            f"{', '.join(turn.role for turn in turns if turn.role != TOOLS)}: {reason}"
        ) from error
    return str(found)


def _inputs(turns: Dialogue, tokenizer: Any, where: str) -> dict[str, Any]:
    """Return what the chat template gets; it has one date for all days, so that a resumed run has
    the same tokens.

    Raises:
        DataError: there are descriptions of tools, and the template has no place for them.
    """
    tools = next((json.loads(turn.more) for turn in turns if turn.role == TOOLS), None)
    template = str(tokenizer.get_chat_template(tools=tools))
    if tools and not re.search(r"\btools\b", template):
        raise DataError(
            f"{where}: found functions in the column {TOOLS!r}, and the chat template of "
            f"{_name(tokenizer)} has no place for them; choose a model whose template has, or name "
            "the column of messages by --text-columns, which leaves them out"
        )
    messages = [
        {"role": turn.role, "content": turn.text, **(json.loads(turn.more) if turn.more else {})}
        for turn in turns
        if turn.role != TOOLS
    ]
    if "strftime_now" in template:
        template = _ONE_DATE + template
    return {"conversation": messages, "tools": tools, "chat_template": template}


def _name(tokenizer: Any) -> str:
    return f"the tokenizer {tokenizer.name_or_path!r}"


# ---- tokens


def _tokenised(
    rows: Sequence[Rendered], tokenizer: Any
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Yield each row's token ids and which of them count, without truncation."""
    found: dict[int, tuple[list[int], NDArray[np.bool_]]] = {}
    for templated in (False, True):
        places = [place for place, row in enumerate(rows) if row.templated is templated]
        if places:
            encoded = tokenizer(
                [rows[place].text for place in places],
                add_special_tokens=not templated,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for place, ids, covers in zip(
                places, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                marks = rows[place].marks
                found[place] = ids, _marks(covers, rows[place].counted) if marks is None else marks
    for place, row in enumerate(rows):
        yield _with_ends(*found[place], row, tokenizer)


def _marks(covers: Sequence[tuple[int, int]], spans: Spans) -> NDArray[np.bool_]:
    """Return which tokens cover a character of the spans: (t,).

    Tokenizers may report no width for white space, and the same character for each of several
    tokens that spell it; a token therefore begins where the last one ended, if that is earlier.
    """
    marks = np.zeros(len(covers), dtype=bool)
    if not len(covers) or not spans:
        return marks
    starts, ends = np.array(covers, dtype=np.int64).T
    starts = np.minimum(starts, np.concatenate(([0], ends[:-1])))
    for first, last in spans:
        marks |= (ends > first) & (starts < last)
    return marks


def _with_ends(
    ids: list[int], marks: NDArray[np.bool_], row: Rendered, tokenizer: Any
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Give a row its end-of-sequence token, and one beginning-of-sequence token if it has two."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and ids[:2] == [begin, begin]:
        ids, marks = ids[1:], marks[1:]
    if row.ends and end is not None:
        if not ids or ids[-1] != end or len(ids) == 1:
            ids, marks = [*ids, end], np.append(marks, True)
        marks[-1] = True
    if not ids:  # no row is empty
        ids, marks = [end if end is not None else tokenizer.pad_token_id], np.zeros(1, dtype=bool)
    marks[0] = False
    return np.array(ids, dtype=np.int32), marks
