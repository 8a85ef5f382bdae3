"""A process of `--jobs`: it trains one run after the other, as long as they end well.

The first run is its command line's. Its standard input is a socket, on which it says of each run
that it is done, a line, and is given the next one, or no more. After a failure it ends, with the
run's exit code: what is left of a run that has failed is nothing to go on with.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from bayeslora_cli import cli


def main() -> None:
    """Train what the command line says, and then what the socket says."""
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("r") as orders:
        _open(os.devnull, os.O_RDONLY, 0)  # nobody else is to read orders
        from bayeslora_cli.shared import Shared

        shared = Shared()
        _train(shared)
        channel.sendall(b"\n")
        for line in orders:
            order = json.loads(line)
            for number in (1, 2):
                _open(order["log"], os.O_WRONLY | os.O_APPEND, number)
            sys.argv[1:] = order["arguments"]
            _train(shared)
            channel.sendall(b"\n")


def _train(shared: object) -> None:
    """Be `bayeslora`, but stay where that ends well."""
    try:
        cli.main(shared)
    except SystemExit as done:
        if done.code:
            raise
    sys.stdout.flush()
    sys.stderr.flush()


def _open(path: str, flags: int, number: int) -> None:
    """Have a file descriptor be of another file."""
    found = os.open(path, flags)
    os.dup2(found, number)
    os.close(found)


if __name__ == "__main__":
    main()
