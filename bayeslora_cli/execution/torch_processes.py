"""`TorchProcesses`: one of several processes that train a run together, each on its own device.

Tensors on GPUs are exchanged over NCCL, the hosts' messages over gloo.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from bayeslora_cli.errors import UserError
from bayeslora_cli.execution.host_channel import HostChannel
from bayeslora_cli.execution.replica_checks import ReplicaChecks
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.runs.checkpoint import Stateful


class TorchProcesses(HostChannel):
    """One of several processes, connected to the others by a host and a device channel."""

    def __init__(self, rank: int, world: int, local: int, stop: Stop) -> None:
        """Wait for the other processes at the address that torch's variables name.

        Args:
            local: index of this process among those on this machine.

        Raises:
            BayesloraError: the other processes do not come.
        """
        super().__init__(rank, world, stop)
        self.local = local
        self.checks = ReplicaChecks(self)
        self._nccl: dist.ProcessGroup | None = None
        self._mesh: DeviceMesh | None = None
        self._weight = torch.zeros(())  # weight of this process's rows in the step's batch

    def close(self) -> None:
        """Wait until all processes end: the first may hold the store that the others still use.

        NCCL's connections are not closed here but end with the process, by `Place.exit`: closing
        them would wait for captured graphs that hold them, and compiled functions hold the graphs.
        """
        self.gather(None)
        if self._nccl is None:
            dist.destroy_process_group()

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Check that all processes were given the same command.

        Raises:
            UserError: the commands differ.
        """
        found = self.gather(list(arguments))
        other = next((rank for rank, value in enumerate(found) if value != found[0]), None)
        if other is not None:
            raise self.report_once(
                UserError(
                    f"process {other} of {self.world} was started with {shlex.join(found[other])}, "
                    f"process 0 with {shlex.join(found[0])}: all processes of a job train one run. "
                    "Several runs are several jobs, or --seeds"
                )
            )

    # ---- the device and what is computed there

    def assign_device(self, device: torch.device) -> torch.device:
        with self.all_or_none():
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
            raise self.report_once(
                UserError(
                    f"--device: process {other} of {self.world} finds no GPU, others do; use "
                    "--device cpu for all, or machines that have one"
                )
            )
        identities = self.gather(identity)
        if device.type == "cuda" and len(set(identities)) < self.world:
            raise self.report_once(
                UserError(
                    f"{self.world} processes have {len(set(identities))} GPUs: start as many on a "
                    "machine as it has GPUs, or use --device cpu"
                )
            )
        self._weight = torch.full((), 1 / self.world, device=device)
        self.checks.to(device)
        if device.type == "cuda" and self._nccl is None:
            self._nccl = dist.new_group(backend="nccl")
            # the first call connects, which is impossible during a capture
            dist.all_reduce(torch.zeros(1, device=device), group=self._nccl)
            torch.cuda.synchronize(device)
        return device

    def share(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        mine = rows.tensor_split(self.world)[self.rank]
        part, whole = len(mine), len(rows)
        if counts is not None:
            part, whole = int(counts[mine].sum()), max(1, int(counts[rows].sum()))
        self._weight.fill_(part / whole)
        return mine

    def reduce(self, bank: AdapterBank, good: Tensor) -> Tensor:
        """See `Processes.reduce`; the masks are sent in the same message, unweighted."""
        votes = bank.votes
        bank.message[: bank.message.numel() - votes.numel()].mul_(self._weight)
        votes.copy_(bank.mask.flatten())
        self._all_reduce(bank.message)
        return self.checks.vote(votes, good)

    def mesh(self, device: torch.device) -> DeviceMesh:
        if self._mesh is None:
            # a group of its own: on a CPU the default one carries the hosts' messages
            group = self._nccl or dist.new_group(backend="gloo")
            self._mesh = DeviceMesh.from_group(group, device.type)
        return self._mesh

    def min_max(self, observed: Tensor) -> Tensor:
        ends = torch.stack((-observed[..., 0], observed[..., 1]))
        self._all_reduce(ends, dist.ReduceOp.MAX)
        return torch.stack((-ends[0], ends[1]), -1)

    def _all_reduce(self, tensor: Tensor, by: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        if tensor.is_cuda:
            dist.all_reduce(tensor, by, group=self._nccl)
            return
        with self.connected():
            dist.all_reduce(tensor, by)

    def _broadcast(self, tensor: Tensor) -> None:
        with self.connected():
            dist.broadcast(tensor, 0, group=self._nccl if tensor.is_cuda else None)

    # ---- replicas

    def check_inputs(self, checksums: Mapping[str, str]) -> None:
        self.checks.check_inputs(checksums)

    def broadcast_state(self, parts: Mapping[str, Stateful], resumed: bool) -> bool:
        return self.checks.broadcast_state(parts, resumed, self._broadcast)

    def check_state(self, step: int, bank: AdapterBank) -> None:
        self.checks.check_state(step, bank)

    def check_masks(self, step: int) -> None:
        self.checks.check_masks(step)
