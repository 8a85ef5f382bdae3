"""Questions from data sets with the hub's columns: from the hub, or saved by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.sources.choice_tasks.mmlu import group_of
from bayeslora_cli.tasks.sources.choice_tasks.questions import LETTERS, Question

Row = Mapping[str, Any]


def find_folder(data: Path, *names: str) -> Path | None:
    """Return the folder of a saved `DatasetDict`, at `data` or below it under one of the names."""
    for folder in (data, *(data / name for name in names)):
        if (folder / "dataset_dict.json").is_file():
            return folder
    return None


def load_tables(source: Path | str, config: str | None = None) -> Any:
    """Load a `DatasetDict` from a folder, or from the hub or its cache.

    Args:
        source: the folder, or the data set's name on the hub.
    Raises:
        UserError: it cannot be loaded.
    """
    try:
        import datasets  # slow, and not needed for other files

        if isinstance(source, Path):
            return datasets.load_from_disk(str(source))
        return datasets.load_dataset(source, config)
    # OSError, ValueError, Arrow's, the HTTP client's and the library's own classes, by version
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(source, Path):
            raise DataError(
                f"--data {source}: cannot be read as a DatasetDict: {reason}"
            ) from error
        raise UserError(
            f"{source} cannot be loaded from the Hugging Face hub or its cache: {reason}. Give a "
            "local copy by --data DIR; docs/choices.md lists the layouts"
        ) from error


def read_split(
    tables: Any, split: str, read: Callable[[Row], Question], where: str
) -> list[Question] | None:
    """Read one split; None: there is no such split.

    Args:
        read: makes a question of a row.
        where: the data set, for messages.
    Raises:
        DataError: a row lacks a column, or holds another value than it should.
    """
    if split not in tables:
        return None
    questions = []
    for number, row in enumerate(tables[split]):
        try:
            question = read(row)
            if question.answer is not None and question.answer not in range(len(question.choices)):
                raise ValueError(f"the answer is none of {len(question.choices)} choices")
            questions.append(question)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                f"{where}, {split}, row {number}: not as expected: {type(error).__name__} {error}; "
                f"found the columns {', '.join(row)}"
            ) from error
    return questions or None


# ---- rows of each data set


def mmlu(row: Row) -> Question:
    """A row of cais/mmlu, configuration all."""
    return Question(
        text=row["question"].strip(),
        choices=tuple(row["choices"]),
        answer=int(row["answer"]),
        group=group_of(row["subject"]),
    )


def arc(row: Row) -> Question:
    """A row of allenai/ai2_arc, or of allenai/openbookqa."""
    text = row["question"] if "question" in row else row["question_stem"]
    key = row["answerKey"].strip()
    return Question(
        text=text,
        choices=tuple(row["choices"]["text"]),
        answer=row["choices"]["label"].index(key) if key else None,
    )


def boolq(row: Row) -> Question:
    """A row of google/boolq."""
    return Question(
        text=row["question"],
        choices=("no", "yes"),
        answer=int(row["answer"]),
        passage=row["passage"],
    )


def winogrande(row: Row) -> Question:
    """A row of allenai/winogrande; its test split has no answers."""
    answer = {"1": 0, "2": 1, "": None}[row["answer"]]
    return Question(text=row["sentence"], choices=(row["option1"], row["option2"]), answer=answer)


def piqa(row: Row) -> Question:
    """A row of baber/piqa; its test split has no answers."""
    answer = {0: 0, 1: 1, -1: None}[row["label"]]
    return Question(text=row["goal"], choices=(row["sol1"], row["sol2"]), answer=answer)


def siqa(row: Row) -> Question:
    """A row of lighteval/siqa."""
    names = LETTERS[:3]
    return Question(
        text=f"{row['context']} {row['question']}",
        choices=tuple(row[f"answer{name}"] for name in names),
        answer=int(row["label"]) - 1,
    )
