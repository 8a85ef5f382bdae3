"""Trainings that are harmed on purpose, and what is compared of a run directory afterwards."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.warm_process import WarmProcess

TIMES = {
    "seconds", "train_seconds", "evaluation_seconds", "checkpoint_seconds", "interval_seconds",
    "interval_tokens", "steps_per_second", "tokens_per_second", "peak_memory_bytes",
}  # fmt: skip


@dataclass
class Ended:
    """A training that has ended, one way or another."""

    code: int
    """Its exit code; minus the signal that killed it."""
    text: str
    """What it printed."""
    seconds: float


class Server:
    """Runs trainings in forks of one process, one after the other."""

    def __init__(self, warm: WarmProcess, directory: Path, options: list[str]) -> None:
        """Runs are written below `directory`; `options` are those of all of them."""
        self.warm, self.directory, self.options = warm, directory, options
        self.token = "hf_" + "s3cret" * 5
        warm.warm_up(["train", *options, "--output", str(directory / "warm" / "out")])
        self.forget("warm")

    def train(
        self, name: str, *more: str, fault: str | int | None = None, at: int = 0,
        after: float | None = None, signal: str = "SIGKILL",
    ) -> Ended:  # fmt: skip
        """`bayeslora train` with its output at `name`, and one fault: see `fault_server.Watch`.

        Args:
            at: the call at which the `fault` comes.
            after: seconds after which a `signal` is sent instead.
        """
        root, log = self.directory / name / "out", self.directory / name / "log"
        root.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        code, seconds = self.warm.ask(
            "fault", arguments=["train", *self.options, "--output", str(root), *more],
            root=str(root), log=str(log), fault=fault, at=at, after=after, signal=signal,
            environment={"HF_TOKEN": self.token},
        )  # fmt: skip
        return Ended(code, log.read_text() if log.exists() else "", seconds)

    def run(self, name: str) -> Path:
        """The one run directory of `name`."""
        (found,) = (self.directory / name / "out").glob("*/*/seed-*")
        return found

    def calls(self, name: str) -> list[str]:
        """What a run without a fault has done that a fault could come at."""
        lines = (self.directory / name / "calls").read_text().splitlines()
        return [line.split(" ", 1)[1] for line in lines]

    def forget(self, name: str) -> None:
        shutil.rmtree(self.directory / name)


def contents(run: Path) -> dict[str, object]:
    """All that a run directory holds, but for times, its own place, and environment.json.

    And but for the lock's file, which a killed process cannot remove, and which locks nobody out.
    """
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir():
            found[name] = None
        elif path.name == "complete":
            found[name] = sorted(json.loads(path.read_text()))
        elif path.name == "checksums.json":  # result.json has times
            found[name] = sorted(json.loads(path.read_text())["files"])
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [_timeless(json.loads(line)) for line in lines]
        elif path.name == "config.toml":
            found[name] = re.sub(r'(?m)^output = "/.*$', "", path.read_text())
        else:
            found[name] = path.read_bytes()
    del found["environment.json"]
    found.pop(".lock", None)
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return value


def differences(run: Path, reference: dict[str, object]) -> list[str]:
    """Names of the files that differ."""
    found = contents(run)
    names = found.keys() | reference.keys()
    return sorted(n for n in names if n not in found or found[n] != reference.get(n, ""))
