"""A process that has imported everything, and forks what tests run, for `warm_process.py`.

A fork takes half a second where an interpreter of its own would take ten. A line of JSON in, a line
of JSON out.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys

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
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["bayeslora", *order["arguments"]]
        be_bayeslora()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


ANSWERS = {"warm up": warm_up, "command": command, "fault": harmed_run, "job": job}


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(ANSWERS[order["kind"]](order)), flush=True)


if __name__ == "__main__":
    main()
