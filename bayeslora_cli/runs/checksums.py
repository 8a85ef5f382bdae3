"""checksums.json: the size and sha256 of each file of a finished run, which readers check.

It is written just before result.json, and includes result.json's checksum. It leaves out the card,
the logs that only people read, the trackers' files and exports.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, ClassVar

from bayeslora_cli.errors import RunDirError

logger = logging.getLogger("bayeslora")

SCHEMA = 1
NOT_CHECKED = "README.md"
"""The card, which people edit."""


class Checksums:
    """The checksums of a finished run's files, by their paths in the run's directory."""

    def __init__(self, file: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """`file`: the path of checksums.json itself."""
        self.file, self.files = file, files

    @classmethod
    def of(cls, file: Path, paths: Iterable[Path], more: Mapping[Path, bytes]) -> Checksums:
        """Compute the checksums.

        Args:
            file: where checksums.json will be.
            paths: files, and directories with files; those that do not exist are left out.
            more: contents of files that will be written later.
        """
        found = {path: _of_file(path) for path in _files(paths)}
        found |= {path: _of_bytes(content) for path, content in more.items()}
        root = file.parent
        names = {path.relative_to(root).as_posix(): entry for path, entry in found.items()}
        return cls(file, dict(sorted(names.items())))

    @classmethod
    def read(cls, file: Path) -> Checksums | None:
        """Read checksums.json; None: there is no such file.

        Raises:
            RunDirError: the file cannot be read, or is damaged itself.
        """
        try:
            value = parse_json(file.read_bytes())
            files = value["files"]
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}, not {SCHEMA}")
            if value["sha256"] != _of_list(files):
                raise ValueError("its own checksum is another")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise RunDirError(f"{file} is corrupt: {error}") from error
        return cls(file, files)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, with a checksum of its own."""
        return {"schema": SCHEMA, "files": self.files, "sha256": _of_list(self.files)}

    def check(self, path: Path, content: bytes | None = None) -> None:
        """Check a file, or each file of a directory.

        Args:
            content: the file's content, if it was already read; None: read it here.
        Raises:
            RunDirError: the file is not what the run has written; the message names it.
        """
        if path.is_dir():
            for file in _files([path]):
                self.check(file)
            return
        name = path.relative_to(self.file.parent).as_posix()
        if name not in self.files:
            raise RunDirError(f"{path} is corrupt: the run has written no such file")
        try:
            found = _of_file(path) if content is None else _of_bytes(content)
        except FileNotFoundError as error:
            raise RunDirError(f"{path} is missing: the run has written it; put it back") from error
        except OSError as error:
            raise RunDirError(f"{path} cannot be read: {error.strerror}") from error
        if found != self.files[name]:
            raise RunDirError(
                f"{path} is corrupt: {self.file.name} has another checksum of it; remove the run, "
                "or put the file back"
            )

    def check_all(self) -> None:
        """Check every file.

        Raises:
            RunDirError: raised by `check` for the first file that is not as written.
        """
        for name in self.files:
            self.check(self.file.parent / name)


class Verifier:
    """Checks a run's files as they are read, once the run has finished."""

    warned_of: ClassVar[set[Path]] = set()
    """Runs of earlier versions that this process has warned of."""

    def __init__(self, file: Path, result: Path, environment: Path) -> None:
        """`file`: checksums.json; `result`: the file that only a finished run has."""
        self.file, self.result, self.environment = file, result, environment
        self._known: Checksums | None = None
        self._is_asked = False

    def forget(self) -> None:
        """Forget the checksums, because checksums.json was deleted."""
        self._known, self._is_asked = None, False

    def check(self, path: Path, content: bytes | None = None) -> None:
        """Check a file or a directory, as `Checksums.check` does.

        Raises:
            RunDirError: the file has changed.
        """
        known = self.known()
        if known is not None:
            known.check(path, content)

    def known(self) -> Checksums | None:
        """Return the checksums; None: the run has not finished, or an earlier version finished it.

        Raises:
            RunDirError: checksums.json is damaged, or missing although environment.json lists it.
        """
        if not self._is_asked:
            self._known = Checksums.read(self.file)
            self._is_asked = self._known is not None or self.result.is_file()
            if self._is_asked and self._known is None:
                self._is_old()
        return self._known

    def _is_old(self) -> None:
        try:
            promised = "checksums" in parse_json(self.environment.read_bytes())
        except (OSError, ValueError, RecursionError, TypeError):
            promised = False
        if promised:
            raise RunDirError(f"{self.file} is missing: the run has written it; put it back")
        if self.file not in self.warned_of:
            self.warned_of.add(self.file)
            logger.warning(
                "%s was trained before runs had checksums: its files are not checked",
                self.file.parent, extra={"once": "checksums"},
            )  # fmt: skip


def parse_json(content: bytes) -> Any:
    """Parse JSON; a key may occur only once in an object.

    Raises:
        ValueError: the content is not JSON, or a key occurs twice.
        RecursionError: the JSON is nested too deeply.
    """
    return json.loads(content.decode("utf-8"), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _files(paths: Iterable[Path]) -> list[Path]:
    inside = [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [path for path in inside if path.is_file() and path.name != NOT_CHECKED]


def _of_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _of_bytes(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": sha256(content).hexdigest()}


def _of_list(files: Any) -> str:
    return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
