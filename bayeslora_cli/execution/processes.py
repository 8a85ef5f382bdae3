"""`Processes`: what training asks of the processes of a job; `SINGLE` is a job of one process.

All other code uses a `Processes` object and does not know how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol, TypeVar

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.execution.signals import Stop

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from bayeslora_cli.models.adapters.bank import AdapterBank
    from bayeslora_cli.runs.checkpoint import Stateful

Value = TypeVar("Value")
Failure = TypeVar("Failure", bound=BaseException)


def mixed(*parts: object) -> int:
    """Hash the parts to a seed of 63 bits; different parts give different seeds."""
    text = " ".join(str(part) for part in parts)
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class Processes(Protocol):
    """Interface to the processes that train a run together.

    Every process must call the same methods in the same order.
    """

    rank: int
    """Index of this process, from 0."""
    world: int
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is the first process, which writes, prints and decides."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Return the seed of this process's draws; the first process uses the run's seed itself."""
        return seed if self.first else mixed(seed, self.rank)

    # ---- agreement

    def all_or_none(self) -> AbstractContextManager[None]:
        """If one process raises inside this block, all processes raise.

        The message is printed once, by the lowest rank that raised. Do not call other methods of
        this object inside the block.
        """

    def report_once(self, error: Failure) -> Failure:
        """Mark an error that every process raises, so that only the first process prints it."""
        if isinstance(error, BayesloraError):
            error.reported_elsewhere, error.on_all_processes = not self.first, True
        return error

    def gather(self, value: Value) -> list[Value]:
        """Return every process's value, by rank; JSON must be able to hold a value."""

    def from_first(self, value: Value) -> Value:
        """Return the first process's value."""
        return self.gather(value)[0]

    def ask(self, question: Callable[[], bool]) -> bool:
        """Return the first process's answer to a question that depends on its clock.

        Several processes evaluate it only at steps where they exchange signals; otherwise the
        answer is False.
        """

    def joint_stop(self, stop: Stop) -> Stop:
        """Return a `Stop` that stops all processes at the same `check` if any got a signal."""

    # ---- the device and what is computed there

    def assign_device(self, device: torch.device) -> torch.device:
        """Return the device that this process uses.

        Raises:
            UserError: there are fewer GPUs than processes, or some have a GPU and some do not.
        """

    def most(self, rows: int) -> int:
        """Return the size of the largest part of a batch of so many rows, as `share` divides it."""
        return -(-rows // self.world)

    def share(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return this process's part of a batch's rows (b,), which may be empty.

        It also sets this process's weight in the next `reduce`.

        Args:
            counts: (n,) the weight of each row of the split; None: 1 each.
        """

    def reduce(self, bank: AdapterBank, good: Tensor) -> Tensor:
        """Sum gradients and losses over all processes, in place.

        This can be captured in a CUDA graph, and reads nothing from the device.

        Returns:
            `good`, or false if the processes' masks differ.
        """

    def mesh(self, device: torch.device) -> DeviceMesh:
        """Return all processes as a mesh of one dimension, which weights are divided among.

        Args:
            device: from `assign_device`.
        """

    def gathering(self) -> AbstractContextManager[None]:
        """Report a connection that breaks inside this block, in which weights are gathered.

        Raises:
            BayesloraError: instead of such an error; other errors stay as they are.
        """

    def min_max(self, observed: Tensor) -> Tensor:
        """Combine each process's smallest and largest value (…, 2) over all processes."""

    def sum_in_place(self, values: Tensor) -> None:
        """Sum a CPU tensor over all processes, in place."""

    # ---- replicas

    def check_inputs(self, checksums: Mapping[str, str]) -> None:
        """Check that all processes have read the same files.

        Args:
            checksums: each by the name of what it covers, as messages print it.
        Raises:
            UserError: the processes have read different files.
        """

    def broadcast_state(self, parts: Mapping[str, Stateful], resumed: bool) -> bool:
        """Copy the first process's state to all others.

        Args:
            resumed: whether this process has restored a checkpoint; only the first one's counts.
        Returns:
            Whether the first process has restored a checkpoint.
        """

    def check_state(self, step: int, bank: AdapterBank) -> None:
        """Check that all processes have the same parameters and masks after `step` steps.

        Raises:
            DriftError: they differ.
        """

    def check_masks(self, step: int) -> None:
        """Check whether the steps stopped changing anything at `step` because masks differed.

        This reads from the device.

        Raises:
            DriftError: the processes' masks differ.
        """


class SingleProcess(Processes):
    """A job of one process, which exchanges nothing."""

    rank = 0
    world = 1

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        yield

    def gather(self, value: Value) -> list[Value]:
        return [value]

    def ask(self, question: Callable[[], bool]) -> bool:
        return question()

    def joint_stop(self, stop: Stop) -> Stop:
        return stop

    def assign_device(self, device: torch.device) -> torch.device:
        return device

    def share(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        return rows

    def reduce(self, bank: AdapterBank, good: Tensor) -> Tensor:
        return good

    def mesh(self, device: torch.device) -> DeviceMesh:
        raise NotImplementedError("a single process divides no weights")

    def gathering(self) -> AbstractContextManager[None]:
        return nullcontext()

    def min_max(self, observed: Tensor) -> Tensor:
        return observed

    def sum_in_place(self, values: Tensor) -> None:
        pass

    def check_inputs(self, checksums: Mapping[str, str]) -> None:
        pass

    def broadcast_state(self, parts: Mapping[str, Stateful], resumed: bool) -> bool:
        return resumed

    def check_state(self, step: int, bank: AdapterBank) -> None:
        pass

    def check_masks(self, step: int) -> None:
        pass


SINGLE = SingleProcess()
