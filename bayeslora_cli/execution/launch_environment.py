"""Reads from the environment which process of a job this is, and joins the others.

torchrun, accelerate launch and srun describe the processes that they start in variables.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import NoReturn

from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.execution.signals import Stop

PORTS = range(15_000, 30_000)
"""Ports below those that operating systems assign; a SLURM job's number selects one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Position of this process in a job; `rank` counts from 0."""

    rank: int = 0
    world: int = 1
    """Number of processes of the job."""
    local: int = 0
    """Index of this process among those on this machine."""
    address: str | None = None
    """The first process's machine; None: torch's variables name it."""
    port: int = 0
    """The port on which the first process listens there."""

    @property
    def name(self) -> str:
        """Prefix of messages that names this process; empty if it is the only one."""
        return f"process {self.rank} of {self.world}: " if self.world > 1 else ""

    @contextmanager
    def only_first_prints(self) -> Iterator[None]:
        """Let only the first process print inside this block; drop the output of the others."""
        with ExitStack() as stack:
            if self.rank:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield

    def exit(self, code: int | str | None) -> NoReturn:
        """End this process; if it is one of several, at once and without clean-up.

        Clean-up may wait for processes that are gone. After success too, clean-up is skipped:
        torch's connection threads have crashed the interpreter as it shut down.
        """
        if self.world > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else bool(code))
        sys.exit(code)


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """Return the place described by torchrun's variables, which accelerate sets too, or srun's."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= variables.keys():
        return Place(
            rank=int(variables["RANK"]),
            world=int(variables["WORLD_SIZE"]),
            local=int(variables.get("LOCAL_RANK", 0)),
        )
    # only srun sets this one: a batch script without it has SLURM_NTASKS and SLURM_PROCID as well
    if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_NODELIST", "")
        number = int(variables.get("SLURM_JOB_ID", 0)) + int(variables.get("SLURM_STEP_ID", 0))
        return Place(
            rank=int(variables["SLURM_PROCID"]),
            world=int(variables["SLURM_STEP_NUM_TASKS"]),
            local=int(variables.get("SLURM_LOCALID", 0)),
            address=first_node(nodes) or "localhost",
            port=PORTS[number % len(PORTS)],
        )
    return Place()


def first_node(nodes: str) -> str:
    """Return the first of SLURM's list of nodes: `gpu[03-05,9],x1` -> `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


@contextmanager
def joined(at: Place, stop: Stop) -> Iterator[Processes]:
    """Join the processes of the job that this one belongs to; `stop` records signals to this one.

    Raises:
        UserError: the processes were given different commands.
        BayesloraError: the other processes do not come.
    """
    if at.world == 1:
        yield SINGLE
        return
    from bayeslora_cli.execution.torch_processes import TorchProcesses

    if at.address is not None:
        os.environ.setdefault("MASTER_ADDR", at.address)
        os.environ.setdefault("MASTER_PORT", str(at.port))
    group = TorchProcesses(at.rank, at.world, at.local, stop)
    group.check_arguments(sys.argv[1:])
    yield group
    group.close()  # not after an error: the others may be gone
