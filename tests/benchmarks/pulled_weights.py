"""Divided weights that each process copies from the others' memory, in place of FSDP2's gathers.

Frozen weights never change, so a process may read another's part at any time, with no process to
ask and no buffer to copy out of: the rows of a tensor that lie with one process are one copy, to
where the whole tensor lies. On GPUs of one host the copy engines make these copies, and no
multiprocessor waits for them. `pull_blocks` takes the place of `divide_blocks` in a benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from bayeslora_cli.models.sharding.divide import _read, blocks_of, stored_names
from bayeslora_cli.models.sharding.stored_weights import StoredWeights

BYTES = 256
"""What addresses of tensors are multiples of."""


def pull_blocks(
    module: Any, mesh: DeviceMesh, device: torch.device, weights: StoredWeights | None,
    *, slots: int = 2,
) -> None:  # fmt: skip
    """Divide the frozen matrices of the blocks; see `divide.divide_blocks`.

    Args:
        slots: number of blocks that are whole at a time; the next `slots - 1` are copied ahead.
    """
    Pulled(module, mesh, device, weights, slots)


class Part:
    """A divided tensor: rows `share` r to `share` (r + 1) lie with process r."""

    def __init__(self, owner: nn.Module, last: str, name: str, places: list[int], world: int):
        self.owner, self.last, self.name = owner, last, name
        parameter = owner._parameters[last]
        assert parameter is not None
        self.like, self.world = parameter, world
        self.share = -(-len(parameter) // world)
        self.row = parameter[:1].numel() * parameter.element_size()
        self.in_share, self.in_slot = places
        """Where it begins among a process's bytes, and among those of a whole block."""

    def rows(self, rank: int) -> tuple[int, int]:
        """Return the first row of a process, and the one behind its last."""
        return tuple(min(len(self.like), at * self.share) for at in (rank, rank + 1))  # type: ignore[return-value]


class Pulled:
    """The blocks' parts, and the slots that whole blocks lie in."""

    def __init__(
        self, module: Any, mesh: DeviceMesh, device: torch.device, weights: StoredWeights | None,
        slots: int,
    ) -> None:  # fmt: skip
        names, blocks = stored_names(module), list(blocks_of(module))
        self.rank, self.world = mesh.get_local_rank(), mesh.size()
        held, largest, self.blocks = 0, 0, list[list[Part]]()
        for block in blocks:
            parts, used = [], 0
            for owner, last, name in _frozen(module, block):
                part = Part(owner, last, name, [held, used], self.world)
                parts.append(part)
                held += _up(part.share * part.row)
                used += _up(len(part.like) * part.row)
            self.blocks.append(parts)
            largest = max(largest, used)
        own, self.peers = _shared(held, mesh, device)
        for part in (part for parts in self.blocks for part in parts):
            start, stop = part.rows(self.rank)
            like = torch.empty(0, dtype=part.like.dtype, device=device)
            rows = (
                part.like.detach()[start:stop]
                if weights is None
                else weights.rows(names[part.name], start, stop, like=like)
            )
            at = part.in_share
            bytes_of = rows.contiguous().view(torch.uint8).flatten()
            own[at : at + bytes_of.numel()].copy_(bytes_of)
        self.peers = self.peers or _whole(own, mesh)
        self.slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(slots)]
        self.inside: list[int | None] = [None] * slots
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied: dict[int, Any] = {}
        for index, block in enumerate(blocks):
            for part in self.blocks[index]:
                self._place(part, self.slots[index % slots])
            block.register_forward_pre_hook(self._before(index))
            block.register_forward_hook(self._behind(index))
        if weights is not None:
            _read(module, weights, names, mesh, device)
        module.to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        torch.distributed.barrier(mesh.get_group())

    def _place(self, part: Part, slot: Tensor) -> None:
        """Have a parameter lie in a slot, without telling autograd of what is written there."""
        size = part.like.element_size()
        found = torch.empty(0, dtype=part.like.dtype, device=slot.device)
        found.set_(
            slot.untyped_storage(), part.in_slot // size, part.like.shape,  # type: ignore[arg-type]
            part.like.contiguous().stride(),
        )  # fmt: skip
        part.owner._parameters[part.last] = nn.Parameter(found, requires_grad=False)

    def _before(self, index: int) -> Any:
        def hook(*_: Any) -> None:
            self._need(index, 1)

        return hook

    def _behind(self, index: int) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            found = out[0] if isinstance(out, tuple) else out
            if found.requires_grad:
                found.register_hook(lambda _: self._need(index, -1))

        return hook

    def _need(self, index: int, direction: int) -> None:
        """Wait for a block, and copy the next ones as soon as their slots are free."""
        for ahead in range(len(self.slots)):
            following = index + ahead * direction
            if 0 <= following < len(self.blocks):
                self._pull(following)
        if self.stream is not None:
            torch.cuda.current_stream().wait_event(self.copied[index])

    def _pull(self, index: int) -> None:
        """Copy a block, unless it is there, behind what the present stream has to do."""
        place = index % len(self.slots)
        if self.inside[place] == index:
            return
        self.inside[place] = index
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            for part in self.blocks[index]:
                for step in range(self.world):  # each begins with another, so that links share
                    rank = (self.rank + step) % self.world
                    start, stop = part.rows(rank)
                    size = (stop - start) * part.row
                    to = part.in_slot + start * part.row
                    self.slots[place][to : to + size].copy_(
                        self.peers[rank][part.in_share : part.in_share + size], non_blocking=True
                    )
            if self.stream is not None:
                self.copied[index] = torch.cuda.Event()
                self.copied[index].record(self.stream)


def _frozen(module: nn.Module, block: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield owner, last name and whole name of a block's frozen tensors of two dimensions."""
    within, seen = {id(child) for child in block.modules()}, set[int]()
    for place, owner in module.named_modules():
        for last, parameter in owner._parameters.items() if id(owner) in within else ():
            if parameter is None or parameter.requires_grad or parameter.dim() < 2:
                continue
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield owner, last, f"{place}.{last}"


def _shared(
    size: int, mesh: DeviceMesh, device: torch.device
) -> tuple[Tensor, list[Tensor] | None]:
    """Return bytes that other processes can read, and those of all; None: to be collected."""
    if device.type != "cuda":
        return torch.zeros(size, dtype=torch.uint8), None
    assert os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
    import torch.distributed._symmetric_memory as symmetric

    own = symmetric.empty(size, dtype=torch.uint8, device=device)
    handle = symmetric.rendezvous(own, mesh.get_group())
    return own, [handle.get_buffer(rank, (size,), torch.uint8) for rank in range(mesh.size())]


def _whole(own: Tensor, mesh: DeviceMesh) -> list[Tensor]:
    """Return everybody's bytes: on CPUs, where only correctness is of interest."""
    found = [torch.empty_like(own) for _ in range(mesh.size())]
    torch.distributed.all_gather(found, own, group=mesh.get_group())
    return found


def _up(size: int) -> int:
    return -(-size // BYTES) * BYTES
