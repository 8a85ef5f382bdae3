"""A process of `--jobs`: it trains one run after the other, as long as they end well.

The first run is its command line's. Its standard input is a socket, on which it says of each run
that it is done, a line, and is given the next one, or no more. After a failure it ends, with the
run's exit code: what is left of a run that has failed is nothing to go on with. Where nobody is at
the socket's other end any more, it stops as if asked to: the same command is to find its state.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from threading import Event, Thread

from bayeslora_cli.cli import app


def main() -> None:
    """Train what the command line says, and then what the socket says."""
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("r") as orders:
        _open(os.devnull, os.O_RDONLY, 0)  # nobody else is to read orders
        from bayeslora_cli.training.assembly import Workspace

        workspace, training = Workspace(), Event()
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
    """Wait for the other end to close, which while a run is trained only its death does."""
    poll = select.poll()
    poll.register(channel, 0)  # that is reported always
    poll.poll()
    if training.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _train(workspace: object, training: Event) -> None:
    """Be `bayeslora`, but stay where that ends well."""
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
    """Have a file descriptor be of another file."""
    found = os.open(path, flags)
    os.dup2(found, number)
    os.close(found)


if __name__ == "__main__":
    main()
