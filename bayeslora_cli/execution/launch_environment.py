"""Which process of a job this is, how it finds the others, speaks for them and leaves.

Who starts several processes says so in variables: torchrun, accelerate launch, or srun.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import NoReturn

from bayeslora_cli.execution.processes import ALONE, Alone
from bayeslora_cli.execution.signals import Stop

PORTS = range(15_000, 30_000)
"""Below those that systems give away by themselves; a SLURM job takes one by its number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Which process of a job this is, counted from 0, as the variables say."""

    rank: int = 0
    world: int = 1
    """Processes of the job."""
    local: int = 0
    """Of the processes on this machine."""
    address: str | None = None
    """Where the first process is, if that has to be worked out."""
    port: int = 0
    """On which it listens, likewise."""

    @property
    def name(self) -> str:
        """What this process calls itself in a message; nothing, if it is alone."""
        return f"process {self.rank} of {self.world}: " if self.world > 1 else ""

    @contextmanager
    def voice(self) -> Iterator[None]:
        """Inside, the first process speaks for all: what others print goes nowhere."""
        with ExitStack() as stack:
            if self.rank:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield

    def leave(self, code: int | str | None) -> NoReturn:
        """End this process; one of several at once, as what it would wait for may never come.

        After a good end, too: torch's threads for connections have crashed an interpreter's end.
        """
        if self.world > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else bool(code))
        sys.exit(code)


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """Where torchrun's variables, which accelerate sets too, or those of a step of srun put us."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= variables.keys():
        return Place(
            rank=int(variables["RANK"]),
            world=int(variables["WORLD_SIZE"]),
            local=int(variables.get("LOCAL_RANK", 0)),
        )
    # of srun alone: a batch script without it has SLURM_NTASKS and SLURM_PROCID as well
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
    """The first of SLURM's list of nodes: `gpu[03-05,9],x1` -> `gpu03`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


@contextmanager
def joined(at: Place, stop: Stop) -> Iterator[Alone]:
    """The processes of the job that this one belongs to; `stop` hears the signals to this one.

    Raises:
        UserError: they were given different commands.
        BayesloraError: they do not come.
    """
    if at.world == 1:
        yield ALONE
        return
    from bayeslora_cli.execution.torch_processes import Together

    if at.address is not None:
        os.environ.setdefault("MASTER_ADDR", at.address)
        os.environ.setdefault("MASTER_PORT", str(at.port))
    group = Together(at.rank, at.world, at.local, stop)
    group.check_arguments(sys.argv[1:])
    yield group
    group.close()  # after an error nobody waits: the others may be gone
