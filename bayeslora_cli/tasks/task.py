"""`Task`: what is predicted, from which columns, by which metrics; `Examples`: rows as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from bayeslora_cli.errors import RunDirError

DATA_CHECKSUM = "data_sha256"
"""The key of result.json under which a run keeps `data_checksum`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is predicted, from which columns, and which metrics measure it."""

    name: str
    """The value of --task; `custom` for a user's own files."""
    text_columns: tuple[str, ...]
    """One or two text columns of its tables."""
    label_column: str
    """The label's column of its tables."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of their indices; () for a score."""
    metrics: tuple[str, ...]
    """Names of metrics that its kind knows, keys of `bayeslora_cli.tasks.metrics.METRICS`."""
    selecting: str
    """The metric that selects the best evaluation, on the first of `validation_splits`."""
    validation_splits: tuple[str, ...] = ("validation",)
    """Labelled splits to evaluate on."""
    test_splits: tuple[str, ...] = ()
    """Splits whose labels the task's authors do not publish."""
    ood_splits: tuple[str, ...] = ()
    """Labelled out-of-distribution splits."""

    held_out: tuple[str, ...] = ()
    """Digests of the training rows, or of the prompts of those, that are its validation split
    (`tasks.validation_share`); () if it has one of its own."""
    objective: str = ""
    """Its kind, a key of `config.catalogue.OBJECTIVES`; "" becomes `usual_objective`."""
    settings: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    """Fields of its `Objective` that differ from their defaults (`ObjectiveEntry.settings`)."""

    def __post_init__(self) -> None:
        if not self.objective:
            object.__setattr__(self, "objective", usual_objective(self.classes))

    @property
    def required_splits(self) -> tuple[str, ...]:
        """The splits that training needs."""
        return ("train", *self.validation_splits)

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that the task has."""
        return (*self.required_splits, *self.test_splits, *self.ood_splits)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object of the fields; `objective` only if it differs from the usual one,
        `held_out` and `settings` only if there are any."""
        found = {name: getattr(self, name) for name in Task.__dataclass_fields__}
        if self.objective == usual_objective(self.classes):
            del found["objective"]
        return {k: v for k, v in found.items() if v or k not in ("held_out", "settings")}

    @staticmethod
    def from_json(value: dict[str, Any], name: str) -> Task:
        """Read back what `to_json` returned.

        Args:
            name: the file's name, for messages.
        Raises:
            RunDirError: keys are missing or superfluous, or have other types.
        """
        try:
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
            }
            task = Task(**fields)
        except TypeError as error:
            raise RunDirError(f"{name} is corrupt: {error}") from error
        kinds = {"tuple": tuple, "Mapping": dict}
        for key, declared in Task.__dataclass_fields__.items():
            found = getattr(task, key)
            kind = kinds.get(str(declared.type).partition("[")[0], str)
            if not isinstance(found, kind) or not all(isinstance(part, str) for part in found):
                raise RunDirError(f"{name} is corrupt: {key} is {found!r}")
        return task


def usual_objective(classes: Sequence[str]) -> str:
    """Return the kind of a task whose file names none, which follows from the classes."""
    return "classification" if classes else "regression"


@dataclass(slots=True)
class Examples:
    """The rows of one split, as text."""

    first: list[str]
    """The first (or only) text of each row."""
    second: list[str] | None
    """The second text of each row; None if the task has single texts."""
    labels: list[Any] | None
    """One label per row as the task's kind parses it, such as a class index or a score; None if the
    split has no labels."""
    place: Callable[[int], str] | None = None
    """Returns where a row, counted from 0, stands: its file and line. None: it is not known."""
    groups: list[str] | None = None
    """What each row belongs to, the widest first, such as stem/astronomy; None: nothing. Metrics
    are also told by group."""
    prompts: list[str] | None = None
    """What each row answers; None: rows are no answers. Answers to equal prompts stay together when
    rows are held out."""

    def __len__(self) -> int:
        return len(self.first)

    def where(self, row: int) -> str:
        """Return the place of a row, counted from 0, for messages."""
        return f"row {row}" if self.place is None else self.place(row)


def data_checksum(task: Task, examples: Mapping[str, Examples]) -> str:
    """Compute sha256 over the classes and the texts and labels of all splits, as they were read.

    The source of the rows, its format and its column names do not count.
    """
    digest = sha256(json.dumps([task.classes, task.objective]).encode())
    for split, rows in sorted(examples.items()):
        digest.update(json.dumps([split, len(rows), rows.labels], default=str).encode())
        for texts in (rows.first, rows.second):
            digest.update(json.dumps(texts and list(map(len, texts))).encode())
            digest.update("".join(texts or ()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def rows_identity(task: Task, examples: Mapping[str, Examples]) -> dict[str, Any]:
    """Return what environment.json keeps of the rows: the checksum of all, and of each split."""
    splits = {name: data_checksum(task, {name: rows}) for name, rows in examples.items()}
    return {"rows": data_checksum(task, examples), "splits": splits}


def changed_splits(task: Task, examples: Mapping[str, Examples], identity: Any) -> list[str]:
    """Return the splits whose rows or labels are others than those of an identity.

    Args:
        identity: what environment.json keeps; runs of earlier versions have less, or nothing.
    """
    known = identity.get("splits") if isinstance(identity, dict) else None
    known = known if isinstance(known, dict) else {}
    return [
        name
        for name, rows in examples.items()
        if name in known and data_checksum(task, {name: rows}) != known[name]
    ]
