"""One of several processes that train a run together; the only user of torch.distributed.

The host's words, which are few, go over gloo; what is on GPUs goes over NCCL. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

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
    DriftError,
    Preempted,
    UserError,
)
from bayeslora_cli.execution.host_channel import AgreedStop
from bayeslora_cli.execution.processes import Alone
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.runs.checkpoint import Stateful

Value = TypeVar("Value")
PATIENCE = 2.0
"""Seconds in which a second SIGINT is the launcher's: a terminal and it have sent one."""
GRACE = 1.0
"""Seconds that the others have to be heard of after a connection broke."""
KINDS = {EXIT_USER: UserError, EXIT_PREEMPTED: Preempted, EXIT_FAILED: BayesloraError}


class Together(Alone):
    """One of several processes."""

    def __init__(self, rank: int, world: int, local: int, stop: Stop) -> None:
        """Waits for the others, where torch's variables say.

        From now on a signal is noted, and found where all look for it.

        Args:
            local: which of the processes on this machine this is.

        Raises:
            BayesloraError: they do not come.
        """
        self.rank, self.world, self.local = rank, world, local
        self._stop = stop
        stop.noting, stop.patience = True, PATIENCE
        self.hears = True
        """Whether `as_one` looks for signals; where there is a state to save, others do."""
        self.ticking = False
        """Whether the last check of the signals was an agreement."""
        self._nccl: dist.ProcessGroup | None = None
        self._share = self._torn = torch.zeros(())
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

    def close(self) -> None:
        """Part in order: the first process may hold what the others' last words go through.

        NCCL's connections end with the process, which has to `leave`: to close them waits for
        captured graphs that hold them, and compiled functions hold those.
        """
        self.gather(None)
        if self._nccl is None:
            dist.destroy_process_group()

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Whether all processes were given the same command.

        Raises:
            UserError: they were not.
        """
        found = self.gather(list(arguments))
        other = next((rank for rank, value in enumerate(found) if value != found[0]), None)
        if other is not None:
            raise self.once(
                UserError(
                    f"process {other} of {self.world} was started with {shlex.join(found[other])}, "
                    f"process 0 with {shlex.join(found[0])}: all processes of a job train one run. "
                    "Several runs are several jobs, or --seeds"
                )
            )

    # ---- being of one mind

    @contextmanager
    def as_one(self) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except Exception as own:
            error = own
        mine: tuple[str, int] | None = None
        if error is not None:
            mine = str(error), error.exit_code if isinstance(error, BayesloraError) else 1
        heard = (self._stop.signal or 0) if self.hears else 0
        found = [(p and (p[0], p[1]), number) for p, number in self.gather((mine, heard))]
        problems = [problem for problem, _ in found if problem is not None]
        number = max(number for _, number in found)
        if isinstance(error, BayesloraError):
            error.told = mine in [problem for problem, _ in found[: self.rank]]
        elif error is None and problems:
            error = KINDS[problems[0][1]](problems[0][0])
            error.told = True
        elif error is None and number:
            error = self.once(
                Preempted(
                    f"stopped by {signal.Signals(number).name}, outside of the training's steps: "
                    "nothing is lost. Run the same command again"
                )
            )
        if isinstance(error, BayesloraError):
            error.common = True
        if error is not None:
            raise error

    def gather(self, value: Value) -> list[Value]:
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._connected():
            dist.all_gather(sizes, torch.tensor([len(mine)]))
            most = max(int(size) for size in sizes)
            parts = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
            dist.all_gather(parts, torch.nn.functional.pad(mine, (0, most - len(mine))))
        return [
            json.loads(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def ask(self, question: Callable[[], bool]) -> bool:
        return self.ticking and self.decided(question())

    def agreed(self, stop: Stop) -> Stop:
        self.hears = True
        return AgreedStop(stop, self)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Errors of the connection inside say that a process is gone.

        Raises:
            BayesloraError: instead of such an error.
        """
        try:
            yield
        except RuntimeError as error:
            raise BayesloraError(
                f"the connection to {self._silent()} is lost: it has ended, was killed, or is out "
                "of reach. What was saved is there: run the same command again, with as many "
                "processes or another number"
            ) from error

    def _silent(self) -> str:
        """Who is not heard of any more, in words; told by who still reaches the store."""
        try:
            self.store.set(f"here/{self.rank}", "")
            time.sleep(GRACE)
            gone = [r for r in range(self.world) if not self.store.check([f"here/{r}"])]
        except RuntimeError:  # its holder is the first process, where there is no torchrun
            gone = [0]
        # of several some may only not have noticed yet
        return f"process {gone[0]} of {self.world}" if len(gone) == 1 else "another process"

    # ---- the device and what is computed there

    def take(self, device: torch.device) -> torch.device:
        with self.as_one():
            if device.index is not None:
                raise UserError(
                    f"--device {device}: each of {self.world} processes takes a GPU of its own; "
                    "use cuda"
                )
        identity = socket.gethostname()
        if device.type == "cuda":
            device = torch.device("cuda", self.local % torch.cuda.device_count())
            torch.cuda.set_device(device)
            identity += f" {torch.cuda.get_device_properties(device).uuid}"
        kinds = self.gather(device.type)
        if len(set(kinds)) > 1:
            other = kinds.index("cpu")
            raise self.once(
                UserError(
                    f"--device: process {other} of {self.world} finds no GPU, others do; use "
                    "--device cpu for all, or machines that have one"
                )
            )
        identities = self.gather(identity)
        if device.type == "cuda" and len(set(identities)) < self.world:
            raise self.once(
                UserError(
                    f"{self.world} processes have {len(set(identities))} GPUs: start as many on a "
                    "machine as it has GPUs, or use --device cpu"
                )
            )
        self._share = torch.full((), 1 / self.world, device=device)
        self._torn = torch.zeros((), dtype=torch.bool, device=device)
        if device.type == "cuda" and self._nccl is None:
            self._nccl = dist.new_group(backend="nccl")
            # connects, which a capture could not
            dist.all_reduce(torch.zeros(1, device=device), group=self._nccl)
            torch.cuda.synchronize(device)
        return device

    def share(self, rows: Tensor) -> Tensor:
        mine = rows.tensor_split(self.world)[self.rank]
        self._share.fill_(len(mine) / len(rows))
        return mine

    def reduce(self, bank: AdapterBank, good: Tensor) -> Tensor:
        """The masks ride along as they are: where all agree, a sum is 0 or the number of us."""
        votes = bank.votes
        bank.message[: bank.message.numel() - votes.numel()].mul_(self._share)
        votes.copy_(bank.mask.flatten())
        self._all_reduce(bank.message)
        torn = (votes * (votes - self.world)).any()
        self._torn.logical_or_(torn & good)
        return good & ~torn

    def _all_reduce(self, tensor: Tensor, by: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        if tensor.is_cuda:
            dist.all_reduce(tensor, by, group=self._nccl)
            return
        with self._connected():
            dist.all_reduce(tensor, by)

    def extremes(self, seen: Tensor) -> Tensor:
        ends = torch.stack((-seen[..., 0], seen[..., 1]))
        self.greatest(ends)
        return torch.stack((-ends[0], ends[1]), -1)

    def total(self, values: Tensor) -> None:
        self._all_reduce(values)

    def greatest(self, values: Tensor) -> None:
        """The greatest over all processes, in place."""
        self._all_reduce(values, dist.ReduceOp.MAX)

    # ---- the state

    def same(self, checksums: Mapping[str, str]) -> None:
        for rank, found in enumerate(self.gather(dict(checksums))):
            other = [name for name, value in checksums.items() if found[name] != value]
            if other:
                raise self.once(
                    UserError(
                        f"processes {self.rank} and {rank} of {self.world} have not read the same: "
                        f"{' and '.join(other)} another checksum. All need the same files, "
                        "libraries and options"
                    )
                )

    def spread(self, parts: Mapping[str, Stateful], resumed: bool) -> bool:
        scalars = {name: part.scalars() for name, part in parts.items()} if self.first else None
        resumed, found = self.decided((resumed, scalars))
        for name, part in parts.items():
            if resumed and not self.first:
                assert found is not None
                part.load_scalars(found[name])
            for tensor in part.tensors().values():
                group = self._nccl if tensor.is_cuda else None
                with self._connected():
                    dist.broadcast(tensor, 0, group=group)
        return resumed

    def compare(self, step: int, bank: AdapterBank) -> None:
        found = self.gather([_checksum(tensor) for tensor in (bank.mean, bank.mask)])
        for what, values in zip(("parameters", "masks"), zip(*found, strict=True), strict=True):
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise self.once(
                    DriftError(
                        f"after {step} steps the {what} of process {other} of {self.world} differ "
                        f"from those of process 0. {DRIFT}"
                    )
                )

    def check_masks(self, step: int) -> None:
        if bool(self._torn):
            raise self.once(
                DriftError(f"before step {step} the processes' masks have come to differ. {DRIFT}")
            )


DRIFT = (
    "Processes compute the same from the same sums, if their GPUs, drivers and libraries are the "
    "same: use such. The last checkpoint is of before; the same command goes on from it"
)


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, 32 at a time; this reads the device."""
    return int(tensor.view(torch.int32).sum(dtype=torch.int64))
