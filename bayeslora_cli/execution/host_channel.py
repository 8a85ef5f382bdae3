"""Exchanges facts and errors between the processes of a job, and stops them at the same step.

Messages are small JSON values, sent between the hosts over gloo. Nothing is pickled, and no GPU
waits for them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bayeslora_cli.errors import (
    EXIT_FAILED,
    EXIT_PREEMPTED,
    EXIT_USER,
    BayesloraError,
    Preempted,
    UserError,
)
from bayeslora_cli.execution.processes import Processes, Value
from bayeslora_cli.execution.signals import Stop, Stopped

PATIENCE = 2.0
"""A second SIGINT within these seconds is ignored: the terminal and the launcher send one each."""
GRACE = 1.0
"""Seconds that the other processes have to answer after a connection broke."""
EXCHANGE = 0.25
"""Seconds between two exchanges of signals and clocks; at least one step."""
MOST_STEPS = 1000
"""At most this many steps between two exchanges."""
BY_EXIT_CODE = {EXIT_USER: UserError, EXIT_PREEMPTED: Preempted, EXIT_FAILED: BayesloraError}


class HostChannel(Processes):
    """The connection of this process to the others, without their devices."""

    def __init__(self, rank: int, world: int, stop: Stop) -> None:
        """Wait for the other processes at the address that torch's variables name.

        From now on a signal to this process is only recorded; the processes find it together at
        their next exchange.

        Raises:
            BayesloraError: the other processes do not come.
        """
        self.rank, self.world = rank, world
        self._stop = stop
        stop.noting, stop.patience = True, PATIENCE
        self.looks_for_signals = True
        """Whether `all_or_none` looks for signals; during training `JointStop` does instead."""
        self.exchanged = False
        """Whether the last `JointStop.check` was an exchange."""
        try:
            self.store, *_ = next(rendezvous("env://", rank, world))
            store = PrefixStore("bayeslora", self.store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        except (RuntimeError, ValueError) as error:
            port = os.environ.get("MASTER_PORT")
            reason = str(error).strip().partition("\n")[0]
            raise BayesloraError(
                f"MASTER_ADDR {os.environ.get('MASTER_ADDR')}, MASTER_PORT {port}: {world} "
                f"processes cannot meet there ({reason}); set another free port, and the machine "
                "of process 0"
            ) from error

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except Exception as own:
            error = own
        mine: tuple[str, int] | None = None
        if error is not None:
            mine = str(error), error.exit_code if isinstance(error, BayesloraError) else 1
        received = (self._stop.signal or 0) if self.looks_for_signals else 0
        found = [(p and (p[0], p[1]), number) for p, number in self.gather((mine, received))]
        problems = [problem for problem, _ in found if problem is not None]
        number = max(number for _, number in found)
        if isinstance(error, BayesloraError):
            error.reported_elsewhere = mine in [problem for problem, _ in found[: self.rank]]
        elif error is None and problems:
            error = BY_EXIT_CODE[problems[0][1]](problems[0][0])
            error.reported_elsewhere = True
        elif error is None and number:
            error = self.report_once(
                Preempted(
                    f"stopped by {signal.Signals(number).name}, outside of the training's steps: "
                    "nothing is lost. Run the same command again"
                )
            )
        if isinstance(error, BayesloraError):
            error.on_all_processes = True
        if error is not None:
            raise error

    def gather(self, value: Value) -> list[Value]:
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self.connected():
            dist.all_gather(sizes, torch.tensor([len(mine)]))
            most = max(int(size) for size in sizes)
            parts = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
            dist.all_gather(parts, torch.nn.functional.pad(mine, (0, most - len(mine))))
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def ask(self, question: Callable[[], bool]) -> bool:
        return self.exchanged and self.from_first(question())

    def joint_stop(self, stop: Stop) -> Stop:
        self.looks_for_signals = True
        return JointStop(stop, self)

    def maximum_in_place(self, values: Tensor) -> None:
        """Replace each element of a CPU tensor by its maximum over all processes, in place."""
        with self.connected():
            dist.all_reduce(values, dist.ReduceOp.MAX)

    def sum_in_place(self, values: Tensor) -> None:
        with self.connected():
            dist.all_reduce(values)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Report a connection error inside this block as a process that is gone.

        Raises:
            BayesloraError: instead of such an error.
        """
        try:
            yield
        except RuntimeError as error:
            raise self._lost() from error

    @contextmanager
    def gathering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._lost() from error
            raise

    def _lost(self) -> BayesloraError:
        return BayesloraError(
            f"the connection to {self._silent()} is lost: it has ended, was killed, or cannot "
            "be reached. Saved states are kept: run the same command again, with the same or "
            "another number of processes"
        )

    def _silent(self) -> str:
        """Name the process that does not answer: all others write to the store."""
        try:
            self.store.set(f"here/{self.rank}", "")
            time.sleep(GRACE)
            gone = [r for r in range(self.world) if not self.store.check([f"here/{r}"])]
        except RuntimeError:  # without torchrun the first process holds the store
            gone = [0]
        # if several are missing, some may just not have noticed yet
        return f"process {gone[0]} of {self.world}" if len(gone) == 1 else "another process"


class JointStop(Stop):
    """Stops all processes at the same step when any one of them receives a signal.

    Most checks only count steps. About every `EXCHANGE` seconds, by the first process's clock, the
    hosts exchange two numbers: the signal, and the number of steps until the next exchange.
    """

    def __init__(self, own: Stop, channel: HostChannel) -> None:
        super().__init__()
        self._own, self._channel = own, channel
        self._steps = self._left = 1
        self._then = perf_counter()

    def check(self) -> None:
        self._left -= 1
        self._channel.exchanged = self._left <= 0
        if self._channel.exchanged:
            self._exchange()

    def _exchange(self) -> None:
        pace = max(1e-6, (perf_counter() - self._then) / self._steps)
        steps = min(int(EXCHANGE / pace), 2 * self._steps, MOST_STEPS)
        own = self._own.signal or 0
        found = torch.tensor([own, max(1, steps) if self._channel.first else 0])
        self._channel.maximum_in_place(found)
        number, self._left = found.tolist()
        self._steps, self._then = self._left, perf_counter()
        if number:
            raise Stopped(signal.Signals(number).name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        self._channel.looks_for_signals = False
        yield
        self._channel.exchanged = True
        self._exchange()
        self._channel.looks_for_signals = True
