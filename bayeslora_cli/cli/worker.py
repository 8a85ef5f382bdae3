"""Worker process of `--jobs`: trains one run after another and exits at the first failure.

The first run is given on the command line. Standard input is a socket: the worker writes a line
when a run is done, and reads the next run from it; the socket's end means that there is none. After
a failure it exits with the run's exit code: the setup of a failed run cannot be used again. If the
pool's process dies, the worker stops as if it had received SIGTERM, and saves its state.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from threading import Event, Thread

from bayeslora_cli.api.training import workspace as new_workspace
from bayeslora_cli.cli import app


def main() -> None:
    """Train the run of the command line, then those that the socket names."""
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("r") as orders:
        _open(os.devnull, os.O_RDONLY, 0)  # libraries must not read from the socket
        workspace, training = new_workspace(), Event()
        Thread(target=_stop_if_left, args=(channel, training), daemon=True).start()
        _train(workspace, training)
        channel.sendall(b"\n")
        for line in orders:
            order = json.loads(line)
            for number in (1, 2):
                _open(order["log"], os.O_WRONLY | os.O_APPEND, number)
            sys.argv[1:] = order["arguments"]
            _train(workspace, training)
            channel.sendall(b"\n")


def _stop_if_left(channel: socket.socket, training: Event) -> None:
    """Stop the run when the other end closes: during a run only the pool's death closes it."""
    poll = select.poll()
    poll.register(channel, 0)  # a hang-up is always reported
    poll.poll()
    if training.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _train(workspace: object, training: Event) -> None:
    """Run `bayeslora` on `sys.argv`; return if it ends well, exit if it does not."""
    training.set()
    try:
        app.main(workspace)
    except SystemExit as done:
        if done.code:
            raise
    training.clear()
    sys.stdout.flush()
    sys.stderr.flush()


def _open(path: str, flags: int, number: int) -> None:
    """Make the file descriptor `number` refer to another file."""
    found = os.open(path, flags)
    os.dup2(found, number)
    os.close(found)


if __name__ == "__main__":
    main()
