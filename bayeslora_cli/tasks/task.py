"""What a task predicts and is measured by, and the rows of its splits, as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from bayeslora_cli.errors import RunDirError

DATA_CHECKSUM = "data_sha256"
"""The key of result.json under which a run keeps `data_checksum`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a task predicts, from which columns, and what it is measured by."""

    name: str
    """The value of --task; `custom` for a user's own files."""
    text_columns: tuple[str, ...]
    """One or two text columns of its tables."""
    label_column: str
    """The label's column of its tables."""
    classes: tuple[str, ...]
    """Names of the classes, a class's place being its index; () for a score."""
    metrics: tuple[str, ...]
    """Names of metrics that its kind knows: keys of `bayeslora_cli.tasks.metrics.METRICS`."""
    selecting: str
    """The metric that picks the best evaluation, on the first of `validation_splits`."""
    validation_splits: tuple[str, ...] = ("validation",)
    """Labelled splits to evaluate on."""
    test_splits: tuple[str, ...] = ()
    """Splits whose labels the task's authors keep to themselves."""
    ood_splits: tuple[str, ...] = ()
    """Labelled splits out of the distribution of the others."""

    objective: str = ""
    """Its kind, a key of `config.catalogue.OBJECTIVES`; "" becomes `usual_objective`."""

    def __post_init__(self) -> None:
        if not self.objective:
            object.__setattr__(self, "objective", usual_objective(self.classes))

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits without which nothing can be trained."""
        return ("train", *self.validation_splits)

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that the task has."""
        return (*self.required_splits, *self.test_splits, *self.ood_splits)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: the fields of this class, but the kind only if it is unusual."""
        found = {name: getattr(self, name) for name in Task.__dataclass_fields__}
        if self.objective == usual_objective(self.classes):
            del found["objective"]
        return found

    @staticmethod
    def from_json(value: dict[str, Any], name: str) -> Task:
        """Read `to_json`'s form back.

        Raises:
            RunDirError: missing or superfluous keys, or other types; `name` says which file.
        """
        try:
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
            }
            task = Task(**fields)
        except TypeError as error:
            raise RunDirError(f"{name} is corrupt: {error}") from error
        for key, field in Task.__dataclass_fields__.items():
            found = getattr(task, key)
            kind = tuple if str(field.type).startswith("tuple") else str
            if not isinstance(found, kind) or not all(isinstance(part, str) for part in found):
                raise RunDirError(f"{name} is corrupt: {key} is {found!r}")
        return task


def usual_objective(classes: Sequence[str]) -> str:
    """The kind of a task whose file names none: what the classes imply."""
    return "classification" if classes else "regression"


@dataclass(slots=True)
class Examples:
    """The rows of one split, as text."""

    first: list[str]
    """The first (or only) text of each row."""
    second: list[str] | None
    """The second text of each row; None when the task has single texts."""
    labels: list[Any] | None
    """A label per row as the task's kind parses it, a class's index or a score, say; None when the
    split has no labels."""

    def __len__(self) -> int:
        return len(self.first)


def data_checksum(task: Task, examples: Mapping[str, Examples]) -> str:
    """sha256 over the classes and the texts and labels of all splits, as they were read.

    Where the rows came from, in which format and under which column names, does not count.
    """
    digest = sha256(json.dumps([task.classes, task.objective]).encode())
    for split, rows in sorted(examples.items()):
        digest.update(json.dumps([split, len(rows), rows.labels], default=str).encode())
        for texts in (rows.first, rows.second):
            digest.update(json.dumps(texts and list(map(len, texts))).encode())
            digest.update("".join(texts or ()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
