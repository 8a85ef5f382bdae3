"""A process that has imported everything, and forks what tests run, for `warm_process.py`.

A fork takes half a second where an interpreter of its own would take ten. A line of JSON in, a line
of JSON out.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time

import torch

from bayeslora_cli.cli import app
from tests.support.fault_server import be_bayeslora, harmed_run
from tests.support.job_server import job


def warm_up(order) -> None:
    """A training in this process, of one thread: what it imports and caches, no fork needs to."""
    sys.argv = ["bayeslora", *order["arguments"], "--quiet"]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        app.main()
    gc.collect()
    gc.freeze()  # or collections in a fork go through, and so copy, all that was imported


def command(order) -> int:
    """The exit code of `bayeslora` with the order's arguments; what it prints is in two files."""
    child = os.fork()
    if child == 0:
        begin({"stdin": os.devnull, "stdout": order["stdout"], "stderr": order["stderr"]})
        sys.argv = ["bayeslora", *order["arguments"]]
        be_bayeslora()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begin(paths: dict[str, str | None]) -> None:
    """In the fork: the streams that an interpreter makes of what the shell has opened, or closed.

    One path for both outputs is opened once, as by `2>&1`. A socket's path is connected to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        path, stream = paths[name], None
        if path is None:
            os.close(number)
        elif name == "stderr" and path == paths["stdout"]:
            os.dup2(1, number)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
            found = connected(path) if path.endswith(".socket") else os.open(path, flags, 0o666)
            os.dup2(found, number)
            os.close(found)
        if path is not None:
            how = {"errors": "backslashreplace", "buffering": 1} if name == "stderr" else {}
            stream = open(number, "w" if number else "r", closefd=False, **how)  # noqa: SIM115
            stream.buffer.raw.name = f"<{name}>"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def connected(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as found:
        found.connect(path)
        return found.detach()


def start(order) -> int:
    """The number of a process that does what `python -m MODULE` would, from its streams to its end.

    What the interpreter does of itself when it ends, it does too: the fork leaves `main`.
    """
    child = os.fork()
    if child == 0:
        os.environ |= order["environment"]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        begin(order["streams"])
        sys.argv = [order["module"], *order["arguments"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        raise SystemExit
    return child


def wait(order) -> int:
    """The exit code of a process that was started; minus the signal, one of ours after a while."""
    end = time.monotonic() + 120
    while True:
        done, status = os.waitpid(order["process"], os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(order["process"], signal.SIGKILL)
        time.sleep(0.02)


ANSWERS = {
    "warm up": warm_up, "command": command, "fault": harmed_run, "job": job, "start": start,
    "wait": wait,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(ANSWERS[order["kind"]](order)), flush=True)


if __name__ == "__main__":
    main()
