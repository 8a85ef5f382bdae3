"""Questions from the alpaca form of LLM-Adapters (Hu et al., EMNLP 2023), one JSON array a split.

    {"instruction": "Please choose the correct answer to the question: ...\n\nAnswer1: ... Answer2:
     ...\n\nAnswer format: answer1/answer2", "input": "", "output": "the correct answer is answer2",
     "answer": "answer2"}

The question and its choices are taken out of the instruction, so that they can be asked as other
data sets ask them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.choice_tasks.questions import Question

SPLITS = ("train", "validation", "test")
_FORMAT = re.compile(r"\s*Answer format: (?P<names>\w+(?:/\w+)+)\s*$")
_REQUEST = re.compile(
    r"Please (?:choose the correct (?:answer|solution) to (?:the question|fill in the blank to "
    r"complete the given sentence)|answer the following question with true or false, question):\s*"
)
_TRUTH = {("true", "false"): (("no", "yes"), {"false": 0, "true": 1})}


def find_folder(data: Path, name: str) -> Path | None:
    """Return the task's folder at or below `data`; None: there is none.

    Args:
        name: the folder's name in the layout, such as ARC-Easy.
    """
    for folder in (data / name, data / "llm_adapters" / name, data):
        if any((folder / f"{split}.json").is_file() for split in SPLITS):
            return folder
    return None


def read_split(folder: Path, split: str) -> list[Question] | None:
    """Read one split; None: there is no such file.

    Raises:
        DataError: the file is no JSON array of such rows; the message names file and row.
    """
    path = folder / f"{split}.json"
    if not path.is_file():
        return None
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a JSON array of one or more rows")
    return [_question(row, f"{path}, row {number}") for number, row in enumerate(rows)]


def _question(row: Any, where: str) -> Question:
    fields = row if isinstance(row, dict) else {}
    text, answer = fields.get("instruction"), str(fields.get("answer"))
    ending = _FORMAT.search(text) if isinstance(text, str) else None
    if not isinstance(text, str) or ending is None:
        raise DataError(
            f"{where}: found {str(row)[:80]!r}; expected an instruction that ends in "
            "'Answer format: answer1/answer2' or the like"
        )
    names = tuple(ending["names"].split("/"))
    if answer not in names:
        raise DataError(f"{where}: found the answer {answer!r}; expected one of {', '.join(names)}")
    body = _REQUEST.sub("", text[: ending.start()], count=1)
    if names in _TRUTH:
        choices, index = _TRUTH[names]
        text = body.strip().removesuffix("?")  # as the authors' own files have it
        return Question(text=text, choices=choices, answer=index[answer])
    # from behind, since a choice is less likely to hold "Answer2: " than a question is
    found: list[str] = []
    for name in reversed(names):
        body, mark, choice = body.rpartition(f"{name.capitalize()}: ")
        if not mark:
            raise DataError(f"{where}: found no {name.capitalize()!r} in the instruction")
        found.insert(0, choice.strip())
    return Question(text=body.strip(), choices=tuple(found), answer=names.index(answer))
