"""Checks that all processes start with equal inputs and state, and do not drift apart later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bayeslora_cli.errors import DriftError, UserError
from bayeslora_cli.execution.host_channel import HostChannel
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.runs.checkpoint import Stateful

DRIFT = (
    "Processes stay equal only if their GPUs, drivers and libraries are the same: use such "
    "machines. The last checkpoint was saved before that; the same command goes on from it"
)


class ReplicaChecks:
    """Compares this process's inputs and state with those of the others."""

    def __init__(self, channel: HostChannel) -> None:
        self.channel = channel
        self.masks_differ = torch.zeros((), dtype=torch.bool)
        """On the device; `vote` writes it there, which a captured step can do."""

    def to(self, device: torch.device) -> None:
        """Use `device` from now on."""
        self.masks_differ = torch.zeros((), dtype=torch.bool, device=device)

    def vote(self, votes: Tensor, good: Tensor) -> Tensor:
        """Compare all processes' masks; this reads nothing from the device.

        Args:
            votes: the sum of all processes' masks: where they agree, 0 or the number of processes.
            good: a scalar bool, whether all steps so far were finite.
        Returns:
            `good`, or false if the masks differ.
        """
        differ = (votes * (votes - self.channel.world)).any()
        self.masks_differ.logical_or_(differ & good)
        return good & ~differ

    def check_masks(self, step: int) -> None:
        """See `Processes.check_masks`."""
        if bool(self.masks_differ):
            raise self.channel.report_once(
                DriftError(f"before step {step} the processes' masks have come to differ. {DRIFT}")
            )

    def check_inputs(self, checksums: Mapping[str, str]) -> None:
        """See `Processes.check_inputs`."""
        mine, world = self.channel.rank, self.channel.world
        for rank, found in enumerate(self.channel.gather(dict(checksums))):
            other = [name for name, value in checksums.items() if found[name] != value]
            if other:
                raise self.channel.report_once(
                    UserError(
                        f"processes {mine} and {rank} of {world} have not read the same: "
                        f"the checksums of {' and '.join(other)} differ. Give all processes the "
                        "same files, libraries and options"
                    )
                )

    def broadcast_state(
        self, parts: Mapping[str, Stateful], resumed: bool, broadcast: Callable[[Tensor], None]
    ) -> bool:
        """See `Processes.broadcast_state`; `broadcast` copies a tensor from the first process."""
        first = self.channel.first
        scalars = {name: part.scalars() for name, part in parts.items()} if first else None
        resumed, found = self.channel.from_first((resumed, scalars))
        for name, part in parts.items():
            if resumed and not first:
                assert found is not None
                part.load_scalars(found[name])
            for tensor in part.tensors().values():
                broadcast(tensor)
        return resumed

    def check_state(self, step: int, bank: AdapterBank) -> None:
        """See `Processes.check_state`."""
        found = self.channel.gather([_checksum(tensor) for tensor in (bank.mean, bank.mask)])
        for what, values in zip(("parameters", "masks"), zip(*found, strict=True), strict=True):
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise self.channel.report_once(
                    DriftError(
                        f"after {step} steps the {what} of process {other} of {self.channel.world} "
                        f"differ from those of process 0. {DRIFT}"
                    )
                )


def _checksum(tensor: Tensor) -> int:
    """Sum a tensor's bits, 32 at a time; this reads from the device."""
    return int(tensor.view(torch.int32).sum(dtype=torch.int64))
