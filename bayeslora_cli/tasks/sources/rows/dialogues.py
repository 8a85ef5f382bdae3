"""Reads rows that a causal language model learns to continue: chats, prompts with completions,
instructions with outputs, and plain text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bayeslora_cli.config.catalogue import EVERYTHING
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import (
    ASSISTANT,
    INSTRUCTION,
    RAW,
    RESPONSE,
    SYSTEM,
    TOOL,
    TOOLS,
    USER,
    Dialogue,
    Turn,
    to_text,
)
from bayeslora_cli.tasks.sources.label_column import short
from bayeslora_cli.tasks.sources.rows.reader import RowReader, read_texts
from bayeslora_cli.tasks.sources.tables.table import Table, listed
from bayeslora_cli.tasks.task import Examples

_CHATS = ("messages", "conversations", "conversation")
_COMPLETIONS = (("prompt", "completion"), ("prompt", "response"))
_INSTRUCTIONS = ("instruction", ("input", "context"), ("output", "response"))
_TEXT = "text"
# columns that may stand beside a text which is to be learned as it is: none of them is a label
_BESIDE_TEXT = {
    "", "id", "idx", "index", "url", "source", "title", "author", "date", "time", "timestamp",
    "meta", "metadata", "dump", "file_path", "language", "token_count", "added", "created",
}  # fmt: skip
_ROLES = {
    SYSTEM: SYSTEM, "developer": "developer", USER: USER, "human": USER, ASSISTANT: ASSISTANT,
    "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT, TOOL: TOOL, "function": TOOL,
}  # fmt: skip
_OPENING = (SYSTEM, "developer")  # roles that only the first turn has
_FORMS = "messages, or prompt and completion, or instruction, input and output, or text"


def prompt_role(columns: Sequence[str]) -> str:
    """Return the role of a prompt in rows that were read from these columns; `RAW` if in doubt."""
    if columns[0] in _CHATS:
        return USER
    return INSTRUCTION if columns[0] == _INSTRUCTIONS[0] else RAW


class Dialogues(RowReader):
    """Rows of turns, as `tasks.dialogue` has them."""

    @property
    def expected(self) -> str:
        return f"{_FORMS} (or --text-columns PROMPT,COMPLETION or --text-columns TEXT)"

    def usual_columns(self, table: Table, *, sure: bool = False) -> tuple[str, ...] | None:
        """Return the columns of the first form that the table has; of those that a user names, two
        are a prompt and its completion, and one is a chat or a text."""
        tools = (TOOLS,) if TOOLS in table.names else ()
        for names in (*((name,) for name in _CHATS), *_COMPLETIONS):
            if set(names) <= set(table.names):
                return (*names, *tools)
        instruction, *others = _INSTRUCTIONS
        found = [next((n for n in names if n in table.names), None) for names in others]
        if instruction in table.names and found[1] is not None:
            return tuple(name for name in (instruction, *found) if name is not None)
        alone = sure or set(table.names) - {_TEXT} <= _BESIDE_TEXT
        return (_TEXT,) if alone and _TEXT in table.names else None

    def told(self, columns: tuple[str, ...], loss_on: str) -> str:
        """Write a clause on the form, and on what counts."""
        columns, tools = _without_tools(columns)
        names = listed(columns)
        if columns[0] in _CHATS:
            what, counts = f"chats in the column {names}", "what the assistant says"
        elif columns[0] == _INSTRUCTIONS[0]:
            what, counts = f"instructions in the columns {names}", columns[-1]
        elif len(columns) == 2:
            what, counts = f"prompts and completions in the columns {names}", columns[-1]
        else:
            return f"text in the column {names}, and every token counts in the loss"
        if loss_on == EVERYTHING:
            counts = "every token"
        if tools:
            what += f" with functions in the column {TOOLS}"
        return f"{what}, and {counts} counts in the loss"

    def read(
        self,
        table: Table,
        columns: tuple[str, ...],
        *,
        loss_on: str,
        labelled: bool | None,
        classes: tuple[str, ...] = (),
    ) -> Examples:
        """Read all rows; labels are 0, as what is predicted stands in the rows themselves."""
        columns, tools = _without_tools(columns)
        if len(columns) not in (1, 2, 3):
            raise DataError(
                f"{table.title}: asked for the columns {', '.join(columns)}; expected {_FORMS}"
            )
        values = [table.read_column(name) for name in columns]
        if columns[0] in _CHATS or isinstance(values[0][0], list):
            rows = _chats(table, columns, values)
            if tools:
                found = zip(_tools(table), rows, strict=True)
                rows = [(*((own,) if own is not None else ()), *row) for own, row in found]
        elif columns[0] == _INSTRUCTIONS[0]:
            rows = _instructions(table, columns)
        elif len(columns) == 2:
            prompts, answers = (read_texts(table, name) for name in columns)
            rows = [
                (Turn(RAW, prompt, False), Turn(RAW, answer, True))
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
        else:
            rows = [(Turn(RAW, text, True),) for text in read_texts(table, columns[0])]
        if loss_on == EVERYTHING:
            rows = [tuple(Turn(t.role, t.text, True, t.more) for t in row) for row in rows]
        return Examples(
            first=[to_text(row) for row in rows],
            second=None,
            labels=None if labelled is False else [0] * len(rows),
            place=table.where,
            prompts=[_asked(row) for row in rows] if any(len(row) > 1 for row in rows) else None,
        )


def _asked(turns: Dialogue) -> str:
    """Return what the first question or prompt of a row says."""
    return next((t.text for t in turns if t.role in (USER, INSTRUCTION)), turns[0].text)


def _instructions(table: Table, columns: Sequence[str]) -> list[Dialogue]:
    asked, said = read_texts(table, columns[0]), read_texts(table, columns[-1])
    more: list[Any] = [None] * len(asked)
    if len(columns) == 3:
        more = table.read_column(columns[1])
        for row, text in enumerate(more):
            if text is not None and not isinstance(text, str):
                raise _not_text(table, row, columns[1], text)
    return [
        (
            Turn(INSTRUCTION, f"{question}\n\n{text}" if text else question, False),
            Turn(RESPONSE, answer, True),
        )
        for question, text, answer in zip(asked, more, said, strict=True)
    ]


# ---- chats


def _without_tools(columns: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Return the columns besides that of tools, and whether there is one."""
    tools = len(columns) > 1 and columns[-1] == TOOLS
    return columns[: len(columns) - tools], tools


def _tools(table: Table) -> list[Turn | None]:
    """Read the functions that each row's chat may call: a list of descriptions, or its JSON."""
    found: list[Turn | None] = []
    for row, value in enumerate(table.read_column(TOOLS)):
        if isinstance(value, str) and value:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{table.where(row)}: the column {TOOLS!r} is no list in JSON ({error})"
                ) from error
        if value and not (isinstance(value, list) and all(isinstance(x, dict) for x in value)):
            raise DataError(
                f"{table.where(row)}: the column {TOOLS!r} holds {short(value)}; expected a list "
                "of descriptions of functions, each an object"
            )
        found.append(Turn(TOOLS, "", False, _as_json(value)) if value else None)
    return found


def _as_json(value: Any) -> str:
    return json.dumps(_without_nulls(value), ensure_ascii=False, sort_keys=True)


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null in it: parquet fills them into every row."""
    if isinstance(value, dict):
        return {key: _without_nulls(x) for key, x in value.items() if x is not None}
    return [_without_nulls(x) for x in value] if isinstance(value, list) else value


def _chats(table: Table, columns: Sequence[str], values: Sequence[Sequence[Any]]) -> list[Dialogue]:
    """Read chats in one column; or in two, of which the first is before what counts."""
    rows = []
    for row, parts in enumerate(zip(*values, strict=True)):
        turns: list[Turn] = []
        for name, messages in zip(columns, parts, strict=True):
            found = _turns(table, row, name, messages)
            if len(columns) > 1 and name == columns[0]:
                found = [Turn(t.role, t.text, False, t.more) for t in found]
            turns += found
        _check_roles(turns, table.where(row))
        rows.append(tuple(turns))
    return rows


def _turns(table: Table, row: int, name: str, messages: Any) -> list[Turn]:
    where = f"{table.where(row)}: the column {name!r}"
    # csv holds them as JSON, and so do some data sets
    if isinstance(messages, str) and (table.spelled or messages.startswith("[")):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no list of messages in JSON ({error})") from error
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where} holds {short(messages)}; expected a list of messages")
    return [_turn(message, f"{where}, message {n}") for n, message in enumerate(messages, 1)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: found {short(message)}; expected an object of role and content")
    message = {key: value for key, value in message.items() if value is not None}
    role = message.pop("role", None) or message.pop("from", None)
    content = message.pop("content", None)
    if content is None:
        content = message.pop("value", "" if "tool_calls" in message else None)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(
            f"{where}: found the role {short(role)}; expected one of {', '.join(_ROLES)}"
        )
    if isinstance(content, list):  # parts of several media
        strange = [p for p in content if not isinstance(p, dict) or p.get("type") != "text"]
        if strange:
            raise DataError(f"{where}: found {short(strange[0])} in the content; expected text")
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise DataError(f"{where}: found {short(content)} as the content; expected text")
    weight = message.pop("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"{where}: found the weight {short(weight)}; expected 0 or 1")
    counted = _ROLES[role] == ASSISTANT and bool(weight)
    return Turn(_ROLES[role], content, counted, _as_json(message) if message else "")


def _check_roles(turns: Sequence[Turn], where: str) -> None:
    """Refuse an order of roles that no conversation has; a template may refuse more.

    Raises:
        DataError: the order is none of a conversation, or nobody answers.
    """
    roles = [turn.role for turn in turns]
    shown = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
    problem = None
    if any(role in _OPENING for role in roles[1:]):
        problem = "only the first turn may be the system's"
    elif ASSISTANT not in roles:
        problem = "no turn is the assistant's, so there is nothing to learn"
    elif next(role for role in roles if role not in _OPENING) == ASSISTANT:
        problem = "the assistant answers before anybody has asked"
    elif (ASSISTANT, ASSISTANT) in pairwise(roles):
        problem = "the assistant answers twice in a row; make one turn of both"
    if problem is not None:
        raise DataError(f"{where}: roles are out of order ({shown}): {problem}")


def _not_text(table: Table, row: int, name: str, value: Any) -> DataError:
    return DataError(
        f"{table.where(row)}: found {short(value)} in the column {name!r}; expected text"
    )


DIALOGUES = Dialogues()
