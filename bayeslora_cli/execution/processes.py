"""The processes of a job: this one alone, or one of several that train a run together.

All else asks one object, `Alone` or `together.Together`, and does not know how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.execution.signals import Stop

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bayeslora_cli.models.adapters.bank import AdapterBank
    from bayeslora_cli.runs.checkpoint import Stateful

Value = TypeVar("Value")
Known = TypeVar("Known", bound=BaseException)


def mixed(*parts: object) -> int:
    """A seed of 63 bits, another one for any other parts."""
    text = " ".join(str(part) for part in parts)
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


class Alone:
    """What the training asks of the other processes, where there are none: next to nothing.

    Methods are called by all processes, in the same order.
    """

    rank = 0
    world = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and decides."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """The seed of this process's own draws; the first's is that of the run."""
        return seed if self.first else mixed(seed, self.rank)

    # ---- being of one mind

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """An error of any process inside is all processes'; no other method is called inside.

        It is said once, by the first process that had it.
        """
        yield

    def once(self, error: Known) -> Known:
        """An error that all processes have: the first one's is said."""
        if isinstance(error, BayesloraError):
            error.told, error.common = not self.first, True
        return error

    def gather(self, value: Value) -> list[Value]:
        """What each process gives, which JSON can hold, by rank."""
        return [value]

    def decided(self, value: Value) -> Value:
        """What the first process gives."""
        return self.gather(value)[0]

    def ask(self, question: Callable[[], bool]) -> bool:
        """The first process's answer, to what only its clock knows; several ask now and then."""
        return question()

    def agreed(self, stop: Stop) -> Stop:
        """A signal to any process is all processes', at the same `check`."""
        return stop

    # ---- the device and what is computed there

    def take(self, device: torch.device) -> torch.device:
        """The device of this process.

        Raises:
            UserError: there are fewer GPUs than processes, or not one kind of device.
        """
        return device

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows (b,), maybe none; the next `reduce` weighs it."""
        return rows

    def reduce(self, bank: AdapterBank, good: Tensor) -> Tensor:
        """Sum gradients and losses over all processes; `good`, and false where masks differ.

        This can be captured, and asks for no value.
        """
        return good

    def extremes(self, seen: Tensor) -> Tensor:
        """The smallest and the largest (…, 2) over all processes."""
        return seen

    def total(self, values: Tensor) -> None:
        """Sum over all processes, in place and on the CPU."""

    # ---- the state

    def same(self, checksums: Mapping[str, str]) -> None:
        """Whether all processes have read the same; keys are what the checksums are of.

        Raises:
            UserError: they have not.
        """

    def spread(self, parts: Mapping[str, Stateful], resumed: bool) -> bool:
        """Bring all processes to the first one's state, which it has `resumed` or not."""
        return resumed

    def compare(self, step: int, bank: AdapterBank) -> None:
        """Whether all processes have come to the same parameters and masks after `step` steps.

        Raises:
            DriftError: they have not.
        """

    def check_masks(self, step: int) -> None:
        """Whether it were the masks that stopped the steps at `step`; this reads the device.

        Raises:
            DriftError: they were.
        """


ALONE = Alone()
