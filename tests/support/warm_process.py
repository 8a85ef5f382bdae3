"""`bayeslora` in processes of its own, without the seconds that its imports take."""

from __future__ import annotations

import json
import subprocess
import sys
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
        code = self.ask("command", arguments=words, **files)
        texts = {name: Path(path).read_text() for name, path in files.items()}
        return subprocess.CompletedProcess(["bayeslora", *words], code, **texts)
