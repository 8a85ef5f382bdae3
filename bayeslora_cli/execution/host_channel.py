"""When several processes stop: together, though a signal may have come to one of them alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from bayeslora_cli.execution.signals import Stop, Stopped

AGREE = 0.25
"""Seconds between two agreements on signals and clocks, or a step, if that is longer."""
MOST_STEPS = 1000
"""Between two agreements."""


class Hosts(Protocol):
    """The processes of a job, without their devices."""

    ticking: bool
    """Whether the last check was an agreement."""
    hears: bool
    """Whether others than `AgreedStop` look for signals."""

    @property
    def first(self) -> bool:
        """Whether this is the process whose clock counts."""

    def greatest(self, values: Tensor) -> None:
        """The greatest over all processes, in place."""


class AgreedStop(Stop):
    """Signals of all processes: one that has come to any of them is found by all at one check.

    Most checks only count. Now and then, some `AGREE` seconds apart by the first process's clock,
    the hosts exchange two numbers over gloo, which no GPU waits for.
    """

    def __init__(self, own: Stop, hosts: Hosts) -> None:
        super().__init__()
        self._own, self._hosts = own, hosts
        self._steps = self._left = 1
        self._then = perf_counter()

    def check(self) -> None:
        self._left -= 1
        self._hosts.ticking = self._left <= 0
        if self._hosts.ticking:
            self._agree()

    def _agree(self) -> None:
        pace = max(1e-6, (perf_counter() - self._then) / self._steps)
        steps = min(int(AGREE / pace), 2 * self._steps, MOST_STEPS)
        own = self._own.signal or 0
        found = torch.tensor([own, max(1, steps) if self._hosts.first else 0])
        self._hosts.greatest(found)
        number, self._left = found.tolist()
        self._steps, self._then = self._left, perf_counter()
        if number:
            raise Stopped(signal.Signals(number).name)

    @contextmanager
    def noted(self) -> Iterator[None]:
        self._hosts.hears = False
        yield
        self._hosts.ticking = True
        self._agree()
        self._hosts.hears = True
