"""Trainings that are killed, stopped or failed at a chosen point, for `faults.py`.

Each is a fork of `warm_server.py`'s process.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import safetensors.torch

from bayeslora_cli.cli import app
from bayeslora_cli.methods.network import Network
from bayeslora_cli.training.step import TrainStep

WRITING = set("wxa+")
FILE_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "ftruncate")


class Watch:
    """Counts the calls that change files of a run, and its steps, and does harm at one of them.

    "kill": SIGKILL just before the call, a file that was to be opened having got half a line;
    an error's number: the call fails; a signal's name: the process sends it to itself.
    """

    def __init__(self, root: Path, fault: str | int | None, at: int, count_to: Path) -> None:
        self.root, self.fault, self.at, self.count_to = root, fault, at, count_to
        self.count = 0

    def __call__(self, what: str, path: Path | None = None) -> None:
        if isinstance(self.fault, int) and what in ("step", "evaluation"):
            return
        self.count += 1
        if self.fault is None:
            with os.fdopen(
                os.open(self.count_to, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a"
            ) as f:
                f.write(f"{self.count} {what} {path}\n")
        if self.count != self.at:
            return
        harm = self.fault == "kill" or isinstance(self.fault, int)
        if harm and path is not None and what in ("open", "save"):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, b'{"step": 1, "lo')
            os.close(descriptor)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault))
        elif self.fault is not None:
            os.kill(os.getpid(), getattr(signal, self.fault))

    def watches(self, path) -> bool:
        try:
            return Path(os.fsdecode(path)).is_relative_to(self.root)
        except TypeError:  # a descriptor
            return False

    def install(self) -> None:
        for name in FILE_CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        opening = builtins.open

        def watched_open(file, mode="r", *arguments, **keywords):
            if WRITING & set(mode) and self.watches(file):
                self("open", Path(file))
            return opening(file, mode, *arguments, **keywords)

        builtins.open = io.open = watched_open
        serialize = safetensors.torch.serialize_file

        def watched_save(tensors, filename, *arguments, **keywords):
            if self.watches(filename):
                self("save", Path(filename))
            return serialize(tensors, filename, *arguments, **keywords)

        safetensors.torch.serialize_file = watched_save
        stepping, passing = TrainStep.__call__, Network.logits

        def watched_step(*arguments):
            self("step")
            stepping(*arguments)

        def watched_pass(network, batch):
            if not network.module.training:
                self("evaluation")
            return passing(network, batch)

        TrainStep.__call__, Network.logits = watched_step, watched_pass

    def around(self, name, call):
        def watched(path, *arguments, **keywords):
            if name == "mkdir" and os.path.isdir(path):  # nothing is made
                return call(path, *arguments, **keywords)
            # removals of trees name files by their directory's descriptor
            if name in ("fsync", "ftruncate") or self.watches(path) or "dir_fd" in keywords:
                self(name, path if isinstance(path, Path) else None)
            return call(path, *arguments, **keywords)

        return watched


def be_bayeslora() -> NoReturn:
    """`bayeslora` with the arguments in `sys.argv`, in a fork, whose end runs nobody's clean-up."""
    code = 1
    try:
        app.main()
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(order) -> None:
    """In the fork: `bayeslora` with the order's arguments."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= order["environment"]
    sys.argv = ["bayeslora", *order["arguments"]]
    root = Path(order["root"])
    Watch(root, order["fault"], order["at"], root.parent / "calls").install()
    be_bayeslora()


def harmed_run(order) -> tuple[int, float]:
    """The exit code of a run, minus the signal that killed it, and its seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        run(order)
    if order["after"] is not None:  # a fault from outside, by the clock
        time.sleep(order["after"])
        os.kill(child, getattr(signal, order["signal"]))
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.monotonic() - start
