"""Runs a benchmark of two builds at the same time, whose timed parts take turns.

    python tests/benchmarks/gpu_step.py --lengths 64 --rows adalora-ivon --against 9afafbf
    python tests/benchmarks/cpu_step.py --few --against ../an-older-checkout

Each build runs its own script with its own package in a process of its own, with the same options.
Before a timed part a process waits until the other one stands before the same part, then they run
it one after the other; so neither builds or compiles while the other is timed. The table compares
the parts: the median of the ratios of times that lie side by side. Beside it each build prints the
tables of its script.

A build from before a script had an option does not take it, so name only rows and options that both
have. Where there is no git, name a directory with the other build's files.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESS, SCRIPT = "BAYESLORA_TURNS", "BAYESLORA_BENCHMARK"
"""Environment variables of the two processes: where turns are given, and the script to run."""

Label = Callable[..., str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """What is timed in a script, by names that builds have in common."""

    part: str
    """The function or method that takes a turn."""
    returned: bool = False
    """Whether what that function returns takes the turns."""
    label: Label
    """Its arguments -> name of a line of the table."""
    table: str | None = None
    """A function, if the build has it, that is called before the parts of one table."""
    title: Label = lambda *_, **__: ""
    """Its arguments -> what the lines of that table have in common."""


# functions that update_cost.py times
PARTS = {"step": "all", "<lambda>": "update"}
SCRIPTS = {
    "gpu_step": Timed(
        part="Row.timed_turn", label=lambda row, *_: row.label,
        table="measure", title=lambda _, workload, __, precision, *___: f"{workload}, {precision}",
    ),
    "causal_step": Timed(part="Row.timed_turn", label=lambda row, *_: row.label),
    "cpu_step": Timed(
        part="ours", returned=True,
        label=lambda _, optimizer, criterion, __, ___, precision="fp32", packing="off":
            f"{optimizer}, {criterion}, {precision}, packing {packing}",
        table="measure", title=lambda task, *_: task,
    ),
    "update_cost": Timed(
        part="median_ms",
        label=lambda call, *_: PARTS.get(call.__name__, call.__name__),
        table="parts_of", title=lambda layers, optimizer, *_: f"{layers} layers, {optimizer}",
    ),
    "scaling": Timed(
        part="timed", label=lambda call, *_: "step" if call.__name__ == "call" else "sum",
        table="build",
        title=lambda optimizer, _, precision, __, ___, processes, **____:
            f"{processes.world} processes, {optimizer}, {precision}",
    ),
}  # fmt: skip


# ---- in each of the two processes


class Turns:
    """A process's side: asks before each timed part, and says how long it took."""

    def __init__(self, address: str) -> None:
        self.connection = Client(address)
        self.title = ""

    def under(self, found: Any, title: Label) -> Any:
        """Return the function `found` so that it begins a table."""

        @functools.wraps(found)
        def begin(*args: Any, **options: Any) -> Any:
            self.title = f"{title(*args, **options)}: "
            return found(*args, **options)

        return begin

    def of(self, found: Any, name: Callable[[tuple[Any, ...]], str]) -> Any:
        """Return the function `found` so that it takes turns; `name`: its arguments -> a name."""

        @functools.wraps(found)
        def take(*args: Any, **options: Any) -> Any:
            self.connection.send("here")
            self.connection.recv()
            start = time.perf_counter(), time.process_time()
            result = found(*args, **options)
            passed = time.perf_counter() - start[0], time.process_time() - start[1]
            if isinstance(result, float):  # milliseconds, as the part itself measured
                passed = result / 1e3, passed[1]
            self.connection.send((f"{self.title}{name(args)}", *passed))
            return result

        return take

    def made_by(self, found: Any, label: Label) -> Any:
        """Return the function `found` so that what it returns takes turns."""

        @functools.wraps(found)
        def make(*args: Any) -> Any:
            return self.of(found(*args), lambda _: label(*args))

        return make


def replace_in(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a function of a module, or a method `Class.method`."""
    *owners, last = name.split(".")
    owner = functools.reduce(getattr, owners, module)
    setattr(owner, last, make(getattr(owner, last)))


def run_script() -> None:
    """Run the script of this build, its timed parts in turns."""
    script = Path(os.environ[SCRIPT])
    sys.path[0] = str(script.parent)
    module = importlib.import_module(script.stem)
    # what the script starts itself, such as the processes of a job, comes through here as well
    module.__file__ = __file__
    if os.environ.get("RANK", "0") == "0" and ("RANK" in os.environ or script.stem != "scaling"):
        timed, turns = SCRIPTS[script.stem], Turns(os.environ[ADDRESS])
        if timed.returned:
            replace_in(module, timed.part, lambda found: turns.made_by(found, timed.label))
        else:
            replace_in(
                module, timed.part, lambda found: turns.of(found, lambda args: timed.label(*args))
            )
        if timed.table is not None and hasattr(module, timed.table):
            replace_in(module, timed.table, lambda found: turns.under(found, timed.title))
    module.main()


# ---- in the process that compares


@dataclass(kw_only=True, slots=True)
class Side:
    """A build that is being measured."""

    name: str
    listener: Listener
    process: subprocess.Popen[bytes]
    watcher: threading.Thread = field(init=False)
    connection: Connection | None = None
    ended: bool = False
    found: list[tuple[str, float, float]] = field(default_factory=list)
    """Of each part: its name, seconds by the clock, and of the process's own time."""

    def waits(self) -> bool:
        """Wait until the process stands before a timed part; False: it has ended."""
        while not self.ended:
            self.connection = self.connection or self.listener.accept()
            try:
                self.ended = self.connection.recv() == "ended"
            except (EOFError, ConnectionError):  # one of several processes in turn
                self.connection = None
                continue
            return not self.ended
        return False

    def go(self) -> None:
        """Let the process run the part."""
        assert self.connection is not None
        self.connection.send("go")
        try:
            self.found.append(self.connection.recv())
        except (EOFError, ConnectionError):
            self.connection = None

    def watch(self) -> None:
        """Wait for the process to end, and tell."""
        self.process.wait()
        with Client(self.listener.address) as end:
            end.send("ended")


@contextmanager
def files_of(build: str) -> Iterator[Path]:
    """Find a build's files: a directory, or a commit, which is unpacked inside the block."""
    if Path(build).is_dir():
        yield Path(build).resolve()
        return
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", build], check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(directory, filter="data")
        yield Path(directory)


def start(name: str, root: Path, script: str, words: list[str], directory: Path) -> Side:
    """Start a build's script."""
    address = str(directory / f"turns-{len(list(directory.iterdir()))}")
    listener = Listener(address)
    environment = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        ADDRESS: address,
        SCRIPT: str(root / "tests" / "benchmarks" / script),
    }
    with (directory / f"{name}.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, *words], env=environment, cwd=root, stdout=output
        )
    side = Side(name=name, listener=listener, process=process)
    side.watcher = threading.Thread(target=side.watch)
    side.watcher.start()
    return side


def compare(script: str, build: str, words: list[str]) -> None:
    """Run a script's two builds in turns, and print both outputs and the table.

    Args:
        script: its file.
        build: the other build, a commit or a directory.
        words: the command line, `--against` left out.
    """
    with files_of(build) as other, tempfile.TemporaryDirectory() as made:
        directory, name = Path(made), Path(script).name
        roots = {"this build": ROOT, "the other": other}
        if not (other / "tests" / "benchmarks" / name).is_file():
            raise SystemExit(
                f"--against {build}: there is no tests/benchmarks/{name}; name a commit, or a "
                "directory with the other build's package and tests/benchmarks"
            )
        sides = [start(*side, name, words, directory) for side in roots.items()]
        while True:
            standing = [side for side in sides if side.waits()]
            if not standing:
                break
            for side in standing:
                side.go()
            sides.reverse()  # the one that went last goes first
        for side in sides:
            side.watcher.join()
            side.listener.close()
        sides.sort(key=lambda side: list(roots).index(side.name))
        for side in sides:
            print(f"# {side.name if side.name == 'this build' else build}\n")
            print((directory / f"{side.name}.txt").read_text())
        print(table(sides[0].found, sides[1].found, build))
        if any(side.process.returncode for side in sides):
            raise SystemExit("a build failed")


def table(
    here: list[tuple[str, float, float]], there: list[tuple[str, float, float]], build: str
) -> str:
    """Both builds side by side, in Markdown."""
    lines = [
        f"| | ms here | ms at {build} | of {build}'s, median | from – to | of its CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(label for label, *_ in here):
        ours, theirs = ([r[1:] for r in side if r[0] == name] for side in (here, there))
        if not theirs:
            continue
        wall, cpu = (
            [a[clock] / b[clock] for a, b in zip(ours, theirs, strict=False)] for clock in (0, 1)
        )
        medians = (1e3 * statistics.median(x[0] for x in side) for side in (ours, theirs))
        cells = [
            name, *(f"{median:.2f}" for median in medians),
            f"{statistics.median(wall):.3f}", f"{min(wall):.3f} – {max(wall):.3f}",
            f"{statistics.median(cpu):.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--against`."""
    parser.add_argument(
        "--against", metavar="COMMIT|DIR",
        help="another build, with the same options, whose timed parts alternate with this one's",
    )  # fmt: skip


def compared(script: str, options: argparse.Namespace, argv: list[str] | None = None) -> bool:
    """Compare two builds if `--against` was given; whether it was."""
    if options.against is None:
        return False
    words = list(sys.argv[1:] if argv is None else argv)
    for place, word in enumerate(words):
        if word.split("=")[0] == "--against":
            del words[place : place + (1 if "=" in word else 2)]
            break
    compare(script, options.against, words)
    return True


if __name__ == "__main__":
    run_script()
