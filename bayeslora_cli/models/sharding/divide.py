"""Divides the frozen weights of a backbone's blocks among processes, by torch's FSDP2.

Each process keeps a part of the rows of every frozen tensor of every block. A block's tensors are
gathered while the block before it computes, forward and backward, and freed behind it. Everything
else is whole on every process: embeddings, output layer, head, and what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bayeslora_cli.models.sharding.sharded_linear import ShardedLinear
from bayeslora_cli.models.sharding.stored_weights import StoredWeights


def divide_blocks(
    module: Any, mesh: DeviceMesh, device: torch.device, weights: StoredWeights | None
) -> None:
    """Divide the frozen tensors of the blocks of a backbone among the processes of a mesh.

    Args:
        module: the backbone, adapted and in its types, its joint products made. Its frozen
            parameters lie on the CPU, or on the meta device if `weights` holds them.
        mesh: all processes, in one dimension.
        weights: where the parameters on the meta device are read from, this process's part only.
    """
    names = stored_names(module)
    blocks = list(blocks_of(module))
    # torch divides no scalars
    whole = {p for p in module.parameters() if p.requires_grad or not p.dim()}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole & set(block.parameters()))
    root = module.base_model  # a pass may leave out the output layer
    divided = {p for block in blocks for p in block.parameters() if isinstance(p, DTensor)}
    fully_shard(root, mesh=mesh, ignored_params=set(root.parameters()) - divided)
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
    if weights is not None:
        _read(module, weights, names, mesh, device)
    module.to(device)


def blocks_of(module: nn.Module) -> Iterator[Any]:
    """Yield the repeated blocks of a backbone: those of its lists of layers of one class."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len({type(block) for block in child}) == 1:
            yield from child
        else:
            yield from blocks_of(child)


def stored_names(module: nn.Module) -> dict[str, list[str]]:
    """Return the names in a checkpoint of what each parameter holds, by its name in the module.

    A joint product's weight holds several tensors, one below the other.
    """
    places = {id(child): name for name, child in module.named_modules()}
    found = {}
    for name, _ in module.named_parameters():
        place, _, last = name.rpartition(".")
        owner: nn.Module = module.get_submodule(place)
        members = owner.members if isinstance(owner, ShardedLinear) else ()
        found[name] = [
            f"{places[id(form)].removesuffix('.base_layer')}.{last}" for form in members or (owner,)
        ]
    return found


def _read(
    module: nn.Module,
    weights: StoredWeights,
    names: dict[str, list[str]],
    mesh: DeviceMesh,
    device: torch.device,
) -> None:
    """Read the parameters that are on the meta device, of divided ones this process's rows."""
    made: dict[int, nn.Parameter] = {}
    for owner_name, owner in module.named_modules():
        for last, parameter in owner._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:  # embeddings may be tied to the output layer
                stored = names[f"{owner_name}.{last}".removeprefix(".")]
                made[id(parameter)] = nn.Parameter(
                    _tensor(parameter, weights, stored, mesh, device), requires_grad=False
                )
            owner._parameters[last] = made[id(parameter)]


def _tensor(
    parameter: Tensor, weights: StoredWeights, stored: list[str], mesh: DeviceMesh,
    device: torch.device,
) -> Tensor:  # fmt: skip
    like = torch.empty(0, dtype=parameter.dtype, device=device)
    if not isinstance(parameter, DTensor):
        return weights.rows(stored, 0, len(parameter), like=like)
    share = -(-len(parameter) // mesh.size())  # as torch divides rows
    start, stop = (
        min(len(parameter), rank * share)
        for rank in (mesh.get_local_rank(), mesh.get_local_rank() + 1)
    )
    return DTensor.from_local(
        weights.rows(stored, start, stop, like=like), mesh, parameter.placements,
        shape=parameter.shape, stride=parameter.stride(), run_check=False,
    )  # fmt: skip
