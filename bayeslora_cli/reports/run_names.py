"""Names runs of several methods and tasks that are shown together, in the words of papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import CRITERIA, METHODS, OPTIMIZERS
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.reports.telling_settings import telling
from bayeslora_cli.tasks.sources.glue import TASKS

_WORDS = {"target_rank": "rank", "init_rank": "initial rank"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunName:
    """The task and the method of runs that differ only in their seeds."""

    task: str
    """Name of the task, such as CoLA, or of a user's file."""
    method: str
    """Name of the method, such as AdaLoRA + IVON, snr, with settings if those differ."""
    place: tuple[Any, ...]
    """Sorts methods as the table of results does, and tasks in GLUE's order."""

    def __str__(self) -> str:
        return f"{self.task}, {self.method}"


def names_of(settings: Sequence[Mapping[str, Any]]) -> tuple[RunName | None, ...]:
    """Name groups of runs, each by its settings; all are None if two names would be equal.

    Args:
        settings: for each group the values of the options that decide its result, as in
            `config.toml`.
    """
    if not all(_is_known(found) for found in settings):
        return (None,) * len(settings)
    bases = [(_task(found), _method(found)) for found in settings]
    # two criteria of one method and optimizer may differ in more than the criterion: both are told
    # the settings that either needs
    kinds = [(found["method"], found["optimizer"]) for found in settings]
    telling_of: dict[tuple[str, str], dict[str, None]] = {kind: {} for kind in kinds}
    for kind, (_, method) in zip(kinds, bases, strict=True):
        telling_of[kind] |= dict.fromkeys(_differing(method, bases, settings))
    named = []
    for kind, (task, method), found in zip(kinds, bases, settings, strict=True):
        whole = ", ".join([method, *_told([*telling_of[kind]], found)])
        named.append(RunName(task=task, method=whole, place=(*_place(found), task, whole)))
    if max(Counter((name.task, name.method) for name in named).values(), default=1) > 1:
        return (None,) * len(settings)
    return tuple(named)


def _is_known(found: Mapping[str, Any]) -> bool:
    return (
        isinstance(found.get("task"), str)
        and found.get("method") in METHODS
        and found.get("optimizer") in OPTIMIZERS
    )


def _task(found: Mapping[str, Any]) -> str:
    name = found["task"]
    if name in TASKS:
        return TASKS[name].folder
    return Path(found["train_file"]).stem if "train_file" in found else str(name)


def _method(found: Mapping[str, Any]) -> str:
    parts = [
        METHODS[found["method"]].title or found["method"],
        OPTIMIZERS[found["optimizer"]].title or found["optimizer"],
    ]
    return ", ".join(filter(None, [" + ".join(parts), found.get("criterion")]))


def _place(found: Mapping[str, Any]) -> tuple[Any, ...]:
    tasks = list(TASKS)
    criterion = CRITERIA.get(found.get("criterion", ""))
    return (
        tasks.index(found["task"]) if found["task"] in tasks else len(tasks),
        METHODS[found["method"]].place,
        OPTIMIZERS[found["optimizer"]].place,
        -1 if criterion is None else criterion.place,
    )


def _differing(
    method: str, bases: Sequence[tuple[str, str]], settings: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Find the settings in which groups of this method differ on one task; step numbers only if no
    other settings differ.

    An initial rank that follows from the target rank does not count as a setting.
    """
    tasks = [
        [s for base, s in zip(bases, settings, strict=True) if base == (task, method)]
        for task in dict.fromkeys(task for task, _ in bases)
    ]
    names = dict.fromkeys(name for alike in tasks for values in alike for name in values)
    if telling(["target_rank"], tasks):
        names.pop("init_rank", None)
    final = [name for name in names if name not in OPTIONS or OPTIONS[name].is_final]
    return telling(final, tasks) or telling([*names], tasks)


def _told(names: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    """Write settings as words: rank 4, lr 0.5."""
    return [
        f"{_WORDS.get(name, name.replace('_', ' '))} {_shown(found[name])}"
        for name in names
        if name in found
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
