"""`RunDir`: sole owner of the file names in a run directory and of atomic writes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayeslora_cli.config import RunConfig, affecting, flag, from_toml, to_toml
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.tasks import Task

_UMASK = os.umask(0)  # there is no way to read it but to set it
os.umask(_UMASK)


def _sync(path: Path) -> None:
    """Flush a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, a file or a directory to be; renamed to it on success.

    Whoever looks sees the old thing or the new one, whole. A directory cannot be exchanged in one
    call: the old one steps aside just before, and `recover` brings it back after a kill in between.
    """
    recover(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _aside(path, "tmp"), _aside(path, "old")
    _remove(temporary)
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            if written.is_file():
                written.chmod(0o666 & ~_UMASK)  # safetensors keeps its files from everyone else
            _sync(written)
        if path.is_dir():
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
        _remove(old)
    except BaseException:
        recover(path)
        _remove(temporary)
        raise


def recover(path: Path) -> None:
    """Undo what a kill inside `replacing` left: the old directory comes back, or goes for good."""
    old = _aside(path, "old")
    if not old.is_dir():
        return
    if path.exists():
        _remove(old)
    else:
        old.rename(path)


def _aside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all.

    Raises:
        ValueError: a NaN or an infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class RunDir:
    """A run's directory: its files by name, read and written."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet."""
        self.path = path
        self.config = path / "config.toml"
        self.task = path / "task.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.ranks_history = path / "ranks.jsonl"
        self.result = path / "result.json"
        self.ranks = path / "ranks.json"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.posterior = path / "posterior.safetensors"
        self.checkpoint = path / "checkpoint"
        self.card = path / "README.md"
        self.exports = path / "export"

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run.

        Raises:
            RunDirError: no directory, or one that is no run.
        """
        run = cls(path)
        if not path.is_dir():
            raise RunDirError(
                f"{path}: no such directory; give a run directory, as train prints it"
            )
        if not run.config.is_file():
            raise RunDirError(f"{path}: not a run directory, it has no {run.config.name}")
        return run

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            UserError: unreadable, or of another version.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunDirError(f"{self.config} is corrupt: {error}") from error
        return from_toml(text, str(self.config))

    def read_task(self) -> Task:
        """The run's task.

        Raises:
            RunDirError: missing or corrupt.
        """
        return Task.from_json(self.read_json(self.task), str(self.task))

    def read_json(self, path: Path) -> dict[str, Any]:
        """One of the run's JSON objects.

        Raises:
            RunDirError: missing or corrupt.
        """
        try:
            value = json.loads(self.read_text(path))
        except ValueError as error:
            raise RunDirError(f"{path} is corrupt: {error}") from error
        if not isinstance(value, dict):
            raise RunDirError(f"{path} is corrupt: not a JSON object")
        return value

    def read_text(self, path: Path) -> str:
        """One of the run's text files.

        Raises:
            RunDirError: missing, unreadable, or no text.
        """
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise RunDirError(f"{path} is missing: the run has not finished") from error
        except OSError as error:
            raise RunDirError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RunDirError(f"{path} is corrupt: {error}") from error

    def read_result(self) -> dict[str, Any]:
        """The run's result.json.

        Raises:
            RunDirError: missing or corrupt.
        """
        found = self.read_json(self.result)
        absent = [n for n in ("best", "best_at_budget", "last", "steps") if n not in found]
        if absent:
            raise RunDirError(f"{self.result} is corrupt: it has no {absent[0]}")
        return found

    @property
    def started(self) -> bool:
        """Whether a run was begun here."""
        return self.config.is_file()

    @property
    def finished(self) -> bool:
        """Whether a run was completed here: result.json is written last."""
        return self.result.is_file()

    def check(self, config: RunConfig) -> None:
        """Whether the directory can be `config`'s, whose schedule is final; touches nothing.

        Raises:
            RunDirError: it holds a run of another configuration, or files that are no run's.
        """
        if self.started:
            old, new = affecting(self.read_config()), affecting(config)
            different = [f"{flag(n)} {old[n]} there, {new[n]} now" for n in new if old[n] != new[n]]
            if different:
                raise RunDirError(
                    f"{self.path} holds a run with other settings: {'; '.join(different)}. "
                    "Use --overwrite to replace it, or another --output"
                )
        elif self.path.is_dir() and any(
            p != _aside(self.config, "tmp") for p in self.path.iterdir()
        ):
            raise RunDirError(f"{self.path} is not empty and is no run; give another --output")

    def begin(self, config: RunConfig, task: Task, *, overwrite: bool) -> None:
        """Claim the directory for `config`, whose schedule is final, and its task.

        Raises:
            RunDirError: as `check` does; with `overwrite` an earlier run goes instead.
        """
        if overwrite and self.started:
            _remove(self.path)
        self.check(config)
        try:
            if not self.started:
                write_text(self.config, to_toml(config))
            if not self.task.is_file():
                write_json(self.task, task.to_json())
        except OSError as error:
            raise RunDirError(f"--output: cannot write {self.path}: {error}") from error

    def append(self, path: Path, lines: list[Mapping[str, Any]]) -> None:
        """Append lines to one of the run's JSON Lines files."""
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def cut(self, path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the lines that `keep` accepts; a torn last line goes too."""
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and keep(value):
                kept.append(line)
        write_text(path, "".join(kept))
