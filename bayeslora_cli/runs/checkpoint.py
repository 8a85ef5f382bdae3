"""Checkpoints of the whole training state in safetensors and JSON; the newest two are kept.

A state is a directory `step-000123` with `state.safetensors`, `state.json`, the run's logs up to
that step, and `complete`, which is written last and has the size and the sha256 of each file.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora_cli.config.values import Interval
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.runs.atomic_write import discard, leftovers, named, replacing, tidy

TENSORS = "state.safetensors"
SCALARS = "state.json"
COMPLETE = "complete"
STATES_KEPT = 2
LEAST_SECONDS = 60
"""Smallest number of seconds between two checkpoints, unless the user sets an interval."""
TIMES_LONGER = 200
"""Time between two checkpoints, divided by the time of one: they take half a percent of a run."""
BYTES_PER_SECOND = 200e6
"""Assumed speed of writing before the first checkpoint is timed: that of a slow disk."""
_NAME = re.compile(r"step-(\d{6,12})", re.ASCII)
logger = logging.getLogger("bayeslora")


class Stateful(Protocol):
    """A part of the training state, on which later steps depend."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors themselves; loading writes to them."""

    def scalars(self) -> dict[str, Any]:
        """Return the state that JSON can hold."""

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore what `scalars()` returned in this process or an earlier one."""


class Checkpoints:
    """The saved states of a run; knows when the next one is due."""

    def __init__(
        self,
        directory: Path,
        logs: Sequence[Path],
        every: Interval,
        ask: Callable[[Callable[[], bool]], bool] = lambda question: question(),
    ) -> None:
        """Keep the states in `directory`.

        Args:
            logs: files that grow with the run; each state has a copy.
            every: the interval that the user set, which may be empty.
            ask: gives all processes the same answer to a question, by the clock of one of them.
        """
        self.directory = directory
        self.logs = {path.name: path for path in logs}
        self.every = every
        self.ask = ask
        self._took = 0.0
        self._last = perf_counter()

    def due(self, step: int) -> bool:
        """Return whether to save after `step` steps."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return self.ask(self._waited)

    def _waited(self) -> bool:
        wait = self.every.seconds or max(LEAST_SECONDS, TIMES_LONGER * self._took)
        return perf_counter() - self._last >= wait

    def save(self, step: int, parts: Mapping[str, Stateful], *, keep: int = STATES_KEPT) -> float:
        """Write the state after `step` steps, and delete all but the newest `keep` states.

        Returns:
            The seconds that this took.
        Raises:
            StorageError: the state cannot be written; the earlier states are kept.
        """
        start = perf_counter()
        with replacing(self.directory / f"step-{step:06}") as temporary:
            write(temporary, parts, self.logs)
        for earlier in self._all()[:-keep]:
            discard(earlier)
        self._last = perf_counter()
        self._took = self._last - start
        return self._took

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Restore all parts and the logs from the newest state that can be read.

        Returns:
            Whether there was such a state; if not, the parts stay unchanged and the logs are
            deleted.
        Raises:
            RunDirError: the state belongs to another run.
            StorageError: the logs cannot be written.
        """
        with named(self.directory):
            for path in leftovers(self.directory):
                tidy(path)
        chosen: Path | None = None
        logs: set[str] = set()
        unreadable = []
        for directory in reversed(self._all()):
            try:
                tensors, scalars, logs = read(directory, self.logs)
            except (OSError, ValueError, RecursionError, SafetensorError) as error:
                logger.warning("checkpoint %s is skipped, it is damaged: %s", directory, error)
                unreadable.append(directory)
                continue
            _take(directory, tensors, scalars, parts)
            chosen = directory
            break
        if unreadable and chosen is None:
            logger.warning("no checkpoint can be read: the run starts again from the beginning")
        for name, path in self.logs.items():
            if chosen is not None and name in logs:
                with replacing(path) as temporary:
                    shutil.copyfile(chosen / name, temporary)
            else:
                with named(path):
                    path.unlink(missing_ok=True)
        for damaged in unreadable:  # a damaged state would count as one of the newest two
            discard(damaged)
        state = [tensor for part in parts.values() for tensor in part.tensors().values()]
        self._took = sum(tensor.nbytes for tensor in state) / BYTES_PER_SECOND
        self._last = perf_counter()
        return chosen is not None

    def _all(self) -> list[Path]:
        """List the directories of states, complete or not, by step."""
        found = {
            int(match[1]): path
            for path in self.directory.glob("step-*")
            if (match := _NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
        }
        return [found[step] for step in sorted(found)]


def write(directory: Path, parts: Mapping[str, Stateful], logs: Mapping[str, Path]) -> None:
    """Make a directory with the state of all parts, and the logs that exist."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, stateful in parts.items()
        for name, tensor in stateful.tensors().items()
    }
    scalars = {part: stateful.scalars() for part, stateful in parts.items()}
    directory.mkdir(parents=True)
    save_file(tensors, directory / TENSORS)
    (directory / SCALARS).write_text(json.dumps(scalars, indent=2), encoding="utf-8")
    for name, path in logs.items():
        if path.is_file():
            shutil.copyfile(path, directory / name)
    written = {path.name: _identity(path) for path in directory.iterdir()}
    (directory / COMPLETE).write_text(json.dumps(written, indent=2), encoding="utf-8")


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def read(
    directory: Path, logs: Mapping[str, Path]
) -> tuple[dict[str, Tensor], dict[str, Any], set[str]]:
    """Read a state and check every byte.

    Returns:
        Tensors by part and name, scalars by part, and the names of its logs.
    Raises:
        OSError, ValueError, SafetensorError: the state is incomplete or damaged.
    """
    marker = directory / COMPLETE
    if not marker.is_file():
        raise ValueError("it is incomplete")
    written = json.loads(marker.read_text(encoding="utf-8"))
    if not isinstance(written, dict) or not {TENSORS, SCALARS} <= written.keys():
        raise ValueError(f"{COMPLETE} does not list the files")
    if not written.keys() <= {TENSORS, SCALARS, *logs}:
        raise ValueError(f"{COMPLETE} names files that do not belong to a checkpoint")
    for name, identity in written.items():
        if _identity(directory / name) != identity:
            raise ValueError(f"{name} is not what was written")
    scalars = json.loads((directory / SCALARS).read_text(encoding="utf-8"))
    if not isinstance(scalars, dict):
        raise ValueError(f"{SCALARS} is no JSON object")
    return load_file(directory / TENSORS), scalars, written.keys() - {TENSORS, SCALARS}


def transfer(source: Mapping[str, Stateful], parts: Mapping[str, Stateful]) -> None:
    """Copy the state of other parts with the same structure into `parts`, in place."""
    for name, part in parts.items():
        part.load_scalars(source[name].scalars())
        found = source[name].tensors()
        for key, tensor in part.tensors().items():
            tensor.copy_(found[key])


def _take(
    directory: Path,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    parts: Mapping[str, Stateful],
) -> None:
    """Restore all parts. Scalars come first: a part may allocate its tensors by them.

    Raises:
        RunDirError: the state belongs to another run or another version.
    """
    for part, stateful in parts.items():
        if part not in scalars:
            raise RunDirError(f"{directory} is a checkpoint of another run: it has no {part}")
        try:
            _check_kinds(scalars[part], stateful.scalars())
            stateful.load_scalars(scalars[part])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunDirError(f"{directory} is of another version: {part}: {error}") from error
        for name, tensor in stateful.tensors().items():
            saved = tensors.get(f"{part}/{name}")
            if saved is None or saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise RunDirError(f"{directory} is a checkpoint of another run: {part}/{name}")
            tensor.copy_(saved)


def _check_kinds(found: Any, expected: Any, name: str = "its state") -> None:
    """Check that values are of the kinds that a new run has, and numbers not below 0.

    Raises:
        TypeError, ValueError: one is of another kind, or negative.
    """
    kind: Any = (int, float) if isinstance(expected, float) else type(expected)
    if not isinstance(found, kind) or isinstance(found, bool) != isinstance(expected, bool):
        raise TypeError(f"{name} is {found!r:.40}, not {type(expected).__name__}")
    if isinstance(expected, int | float) and not 0 <= found < math.inf:
        raise ValueError(f"{name} is {found!r:.40}")
    if isinstance(expected, dict):
        for key in expected.keys() & found.keys():
            _check_kinds(found[key], expected[key], key)
