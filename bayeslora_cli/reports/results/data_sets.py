"""Finds which runs were trained and evaluated on the same data, and names the data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import TASK_NAMES
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.reports.results.outcomes import GROUPS
from bayeslora_cli.tasks.task import DATA_CHECKSUM

_TAKEN = {*TASK_NAMES, *GROUPS}
"""Names of columns that no file of a user gets."""
_SOURCE = tuple(name for name, option in OPTIONS.items() if option.source)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The data of a run. Runs with equal `identity` have the same data."""

    task: str
    """The task's name in result.json; `custom` for a user's own files."""
    identity: tuple[Any, ...]
    """The checksum of rows and labels; if a run lacks it, what its files record about them."""
    names: tuple[str, ...]
    """Candidates for the data set's name, the shortest first, the last one unique."""


def data_sets(runs: Sequence[tuple[RunConfig, Mapping[str, Any]]]) -> list[DataSet]:
    """Find the data set of each run, given its configuration and result.json.

    A run from before checksums existed gets the data of the only checksum that was read from the
    same place, if there is exactly one. Otherwise its place and number of rows identify its data;
    for a GLUE task only the number of rows, since the task itself determines the data.
    """
    places = [_places(config, result) for config, result in runs]
    known: dict[tuple[Any, ...], set[str]] = {}
    for place, (_, result) in zip(places, runs, strict=True):
        if found := result.get(DATA_CHECKSUM):
            known.setdefault(place, set()).add(str(found))
    sets = []
    for place, (config, result) in zip(places, runs, strict=True):
        task = str(result.get("task", config.task))
        sums = {str(found)} if (found := result.get(DATA_CHECKSUM)) else known.get(place, set())
        rows = result.get("training_rows")
        if len(sums) == 1:
            identity: tuple[Any, ...] = (task, *sums)
        else:
            identity = (task, rows) if config.train_file is None else (task, *place)
        names = tuple(_names(task, config, " ".join(map(str, identity[1:]))))
        sets.append(DataSet(task=task, identity=identity, names=names))
    return sets


def column_names(sets: Sequence[DataSet]) -> dict[tuple[Any, ...], str]:
    """Name each data set, by its identity; different data sets get different names."""
    by_identity: dict[tuple[Any, ...], DataSet] = {}
    for found in sets:
        by_identity.setdefault(found.identity, found)
    level = dict.fromkeys(by_identity, 0)
    while True:
        named: dict[str, list[tuple[Any, ...]]] = {}
        for identity, data in by_identity.items():
            named.setdefault(data.names[level[identity]], []).append(identity)
        shared = [
            identity
            for alike in named.values()
            if len(alike) > 1
            for identity in alike
            if level[identity] < len(by_identity[identity].names) - 1
        ]
        if not shared:
            return {found[0]: name for name, found in named.items()}
        for identity in shared:
            level[identity] += 1


def _places(config: RunConfig, result: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(getattr(config, name) for name in _SOURCE), result.get("training_rows"))


def _names(task: str, config: RunConfig, whole: str) -> Iterator[str]:
    if config.train_file is None:
        yield task  # the name without --data, as long as it is unique
        yield task if config.data is None else f"{task} {Path(config.data).name or config.data}"
        yield task if config.data is None else f"{task} {config.data}"
        yield f"{task} {whole[:8]}"
        yield f"{task} {whole}"
        return
    train = Path(config.train_file)
    own = Path(config.eval_file).name if config.eval_file else ""
    if train.stem and train.stem not in _TAKEN:
        yield train.stem
    yield train.name if train.name not in _TAKEN else f"{train.name} (file)"
    yield f"{train.parent.name}/{train.name}"
    yield f"{train.parent.name}/{train.name} {own}".rstrip()
    yield f"{train} {own}".rstrip()
    yield f"{train.name} {whole[:8]}"
    yield f"{train.name} {whole}"
