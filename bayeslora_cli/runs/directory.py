"""`RunDir`: the run directory; only this module knows its name and the names of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.entries.metrics import outside
from bayeslora_cli.config.files.toml_files import from_toml, to_toml
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.run_config import METHOD_ROW, OPTIONS, RunConfig, flag
from bayeslora_cli.errors import RunDirError, StorageError, UserError
from bayeslora_cli.runs.atomic_write import (
    aside,
    named,
    remove,
    tidy,
    to_json,
    write_json,
    write_text,
)
from bayeslora_cli.runs.checksums import Checksums, Verifier, parse_json
from bayeslora_cli.tasks.task import Task


class RunDir:
    """A run's directory: gives the paths of its files, reads and writes them."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet."""
        self.path = path
        self.lock = path / ".lock"
        self.config = path / "config.toml"
        self.task = path / "task.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.ranks_history = path / "ranks.jsonl"
        self.result = path / "result.json"
        self.checksums = path / "checksums.json"
        self.ranks = path / "ranks.json"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.posterior = path / "posterior.safetensors"
        self.checkpoint = path / "checkpoint"
        self.card = path / "README.md"
        self.exports = path / "export"
        self.trackers = path / "trackers.json"
        self.tensorboard = path / "tensorboard"
        self._verifier = Verifier(self.checksums, self.result, self.environment)

    def paths(self) -> dict[str, Path]:
        """Return the paths by name, without the directory's own."""
        return {n: p for n, p in vars(self).items() if isinstance(p, Path) and n != "path"}

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run.

        Raises:
            RunDirError: there is no such directory, or it is not a run directory.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunDirError(
                f"{path}: no such directory; give a run directory, as train prints it"
            )
        if not run.config.is_file():
            raise RunDirError(f"{path}: not a run directory, it has no {run.config.name}")
        run._check_links()
        return run

    def _check_links(self) -> None:
        """Refuse links out of the directory: a run of unknown origin must not choose what is read.

        Raises:
            RunDirError: one of the run's files is such a link.
        """
        inside = self.path.resolve()
        for path in self.paths().values():
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise RunDirError(
                    f"{path} is a link that leaves the run directory; put the file itself there"
                )

    def read_config(self, *, trust_remote_code: bool = False) -> RunConfig:
        """Read the run's configuration.

        Args:
            trust_remote_code: whether the backbone's own code may run; the file does not decide it.
        Raises:
            UserError: the file cannot be read, or is of another version.
        """
        content = self._read(self.config)
        config = from_toml(self._decoded(self.config, content), str(self.config))
        self._check(self.config, content)
        return replace(config, trust_remote_code=trust_remote_code)

    def read_task(self) -> Task:
        """Read the run's task.

        Raises:
            RunDirError: its file is missing or corrupt.
        """
        return Task.from_json(self.read_json(self.task), str(self.task))

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read one of the run's JSON objects.

        Raises:
            RunDirError: the file is missing or corrupt.
        """
        content = self._read(path)
        try:
            value = parse_json(content)
        except (ValueError, RecursionError) as error:
            raise RunDirError(f"{path} is corrupt: {error}") from error
        if not isinstance(value, dict):
            raise RunDirError(f"{path} is corrupt: not a JSON object")
        self._check(path, content)
        return value

    def read_text(self, path: Path) -> str:
        """Read one of the run's text files.

        Raises:
            RunDirError: the file is missing, unreadable, or not text.
        """
        content = self._read(path)
        text = self._decoded(path, content)
        self._check(path, content)
        return text

    def _read(self, path: Path) -> bytes:
        if path.exists() and not path.is_file():
            raise RunDirError(f"{path} cannot be read: it is no regular file")
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise RunDirError(f"{path} is missing: the run has not finished") from error
        except OSError as error:
            raise RunDirError(f"{path} cannot be read: {error.strerror}") from error

    @staticmethod
    def _decoded(path: Path, content: bytes) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RunDirError(f"{path} is corrupt: {error}") from error

    def read_result(self) -> dict[str, Any]:
        """Read the run's result.json.

        Raises:
            RunDirError: the file is missing or corrupt.
        """
        found = self.read_json(self.result)
        absent = [n for n in ("best", "best_at_budget", "last", "steps") if n not in found]
        if absent:
            raise RunDirError(f"{self.result} is corrupt: it has no {absent[0]}")
        for at in ("best", "best_at_budget", "last"):
            if (wrong := outside(found[at], found.get("selecting"))) is not None:
                raise RunDirError(f"{self.result} is corrupt: {at} {wrong}")
        return found

    def _check(self, path: Path, content: bytes) -> None:
        if path not in (self.metrics, self.trackers):
            self._verifier.check(path, content)

    def verify(self, path: Path | None = None) -> None:
        """Check a file of a finished run against checksums.json; None: all files.

        Raises:
            RunDirError: one has changed since the run was finished, or is missing.
        """
        if path is not None:
            self._verifier.check(path)
        elif (known := self._verifier.known()) is not None:
            known.check_all()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write checksums.json and then result.json, the last file of a run.

        Raises:
            StorageError: they cannot be written.
        """
        content = to_json(result)
        files = (
            self.config, self.task, self.environment, self.ranks_history, self.ranks,
            self.adapter, self.model, self.posterior,
        )  # fmt: skip
        found = Checksums.of(self.checksums, files, {self.result: content.encode()})
        write_json(self.checksums, found.to_json())
        write_text(self.result, content)

    @property
    def started(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    @property
    def finished(self) -> bool:
        """Whether a run was finished here: result.json is written last."""
        return self.result.is_file()

    def check(self, config: RunConfig, same: Sequence[str] = ()) -> None:
        """Check that a run of `config`, which has its final schedule, can use this directory.

        Args:
            same: options whose values are other places of the same content.
        Raises:
            RunDirError: it holds a run of another configuration, or files of no run.
        """
        if self.started:
            self._check_links()
            old, new = affecting(self.read_config()), affecting(config)
            different = [
                f"{flag(n)} {old[n]} there, {new[n]} now"
                for n in new
                if n in old and old[n] != new[n] and n not in same
            ]
            if different:
                raise RunDirError(
                    f"{self.path} holds a run with other settings: {'; '.join(different)}. "
                    "Use --overwrite to replace it, or another --output"
                )
        elif self.path.is_dir() and not self._is_fresh():
            raise RunDirError(f"{self.path} is not empty and is no run; give another --output")

    def _is_fresh(self) -> bool:
        """Return whether the directory is empty, apart from what a start killed at once leaves."""
        return {self.lock, aside(self.config, "tmp")}.issuperset(self.path.iterdir())

    def begin(
        self, config: RunConfig, task: Task, *, overwrite: bool, same: Sequence[str] = ()
    ) -> None:
        """Set up the directory for the run of `config`, which has its final schedule, and `task`.

        `overwrite` deletes an earlier run. It keeps an unfinished run with the same settings that
        was itself started with `overwrite`: then the same command was stopped and runs again.

        Raises:
            RunDirError: raised by `check`.
        """
        try:
            with named(self.path):
                if overwrite and self.started and not self._was_overwriting(config):
                    self._clear()
                self.check(config, same)
                if not self.started:
                    write_text(self.config, to_toml(config))
                if not self.task.is_file():
                    write_json(self.task, task.to_json())
                for path in self.paths().values():
                    tidy(path)
                remove(self.checksums)  # of an end that was killed before the last file
                self._verifier.forget()
        except StorageError as error:
            raise RunDirError(f"--output: {error}") from error

    def _was_overwriting(self, config: RunConfig) -> bool:
        try:
            earlier = self.read_config()
        except UserError:
            return False
        return not self.finished and earlier.overwrite and affecting(earlier) == affecting(config)

    def _clear(self) -> None:
        """Delete a run; a kill in between leaves an unfinished run."""
        first = {self.checkpoint: 0, self.result: 1, self.checksums: 2}
        for path in sorted(self.path.iterdir(), key=lambda path: first.get(path, 3)):
            if path not in (self.lock, self.config):
                remove(path)
        self.config.unlink()

    def append(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to one of the run's JSON Lines files.

        Raises:
            StorageError: the file cannot be written.
        """
        with named(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def runs_below(path: Path) -> Iterator[RunDir]:
    """Find the runs below `path` at any depth, finished or not, by name."""
    for directory, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        run = RunDir(Path(directory))
        if run.started and (run.ranks.is_file() or run.task.is_file()):
            names.clear()  # a run contains no other run
            yield run


def runs_elsewhere(
    run: RunDir, wanted: Mapping[str, Any]
) -> Iterator[tuple[RunDir, tuple[str, ...]]]:
    """Find runs that differ only in paths from `run`, if that is not begun; yield those paths too.

    Args:
        wanted: values of `run` that decide the result.
    """
    group, output = re.sub("-[0-9a-f]{8}$", "", run.path.parent.name), run.path.parents[2]
    for path in () if run.started else sorted(output.glob(f"*/{group}*/{run.path.name}")):
        try:
            there = affecting(RunDir(path).read_config())
        except UserError:
            continue
        moved = tuple(n for n in wanted if n in there and wanted[n] != there[n])
        if all(OPTIONS[n].path for n in moved):
            yield RunDir(path), moved


def run_name(resolved: Resolved) -> Path:
    """Return a run's path: model / task-method-optimizer[-criterion]-rR[-hash] / seed-S."""
    config = resolved.config
    model = Path(config.model)
    slug = model.name if model.is_dir() else config.model.replace("/", "--")
    if config.model.startswith("package:"):
        slug = model.parts[0].removeprefix("package:")
    if slug.lower() in ("model", "checkpoint", "final") and model.parent.name:
        slug = f"{model.parent.name}-{slug}"
    task = config.task if config.train_file is None else _file_stem(config.train_file)
    parts = [task, *(getattr(config, name) for name in METHOD_ROW)]
    if METHODS[config.method].has_ranks:
        parts.append(f"r{config.target_rank}")
    named = {name for name, option in OPTIONS.items() if option.part_of_name is not None}
    if not model.is_dir():
        named.add("model")
    others = {name: value for name, value in resolved.changed.items() if name not in named}
    if others:
        text = json.dumps(others, sort_keys=True)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return Path(slug) / "-".join(p for p in parts if p) / f"seed-{config.seed}"


def _file_stem(source: str) -> str:
    """Return the name of a run on a user's data: that of the file or of the hub data set."""
    path = Path(source)
    name = path.stem if path.is_file() else source
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "custom"
