"""`bayeslora` in processes of its own, without the seconds that its imports take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class WarmProcess:
    """Forks commands, and whatever else `warm_server.py` knows, one after the other."""

    def __init__(self, directory: Path, train: list[str]) -> None:
        """What commands print is written to `directory`; `train` is a training to warm up with."""
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_server"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.warm_up(train)

    def close(self) -> None:
        self.process.communicate()

    def ask(self, kind: str, **order: Any) -> Any:
        print(json.dumps({"kind": kind, **order}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def warm_up(self, arguments: list[str]) -> None:
        """A training in the process itself, of which each fork has the imports."""
        self.ask("warm up", arguments=arguments)

    def bayeslora(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command, typed in the repository: its exit code, and all that its process printed."""
        words = [str(argument) for argument in arguments]
        files = {name: str(self.directory / name) for name in ("stdout", "stderr")}
        for path in files.values():
            Path(path).write_text("")
        code = self.ask("command", arguments=words, **files)
        texts = {name: Path(path).read_text() for name, path in files.items()}
        return subprocess.CompletedProcess(["bayeslora", *words], code, **texts)

    def start(
        self, module: str, *arguments: object, stdin: str | None = os.devnull,
        stdout: str | None = os.devnull, stderr: str | None = os.devnull, **environment: str,
    ) -> Forked:  # fmt: skip
        """`python -m MODULE`, typed in the repository, but for the time that its imports take.

        Args:
            stdin: where it is read from, as the others a path, and None if it is closed; the path
                of a socket that listens ends in ".socket".
            environment: variables, besides those of this test's process when the first one asked.
        """
        number = self.ask(
            "start", module=module, arguments=[str(argument) for argument in arguments],
            streams={"stdin": stdin, "stdout": stdout, "stderr": stderr}, environment=environment,
        )  # fmt: skip
        return Forked(self, number)


@dataclass
class Forked:
    """A process that was started, like one of `subprocess`."""

    warm: WarmProcess
    number: int
    code: int | None = None

    def wait(self) -> int:
        """Its exit code; minus the signal that killed it, as two minutes do."""
        if self.code is None:
            self.code = self.warm.ask("wait", process=self.number)
        return self.code

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.number, signal.SIGKILL)
