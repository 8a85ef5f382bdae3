"""Begins a run with what was learned before: a run, an adapter of PEFT's, or a merged model."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from bayeslora_cli.bayes.ivon import BankIVON
from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.catalogue import FROM, KEPT
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.methods.cutting import singular_factors
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.schedules import KeptRanks
from bayeslora_cli.training.start.source import Source, read_source

logger = logging.getLogger("bayeslora")


def begin_from(
    config: RunConfig, network: Network, optimizer: BankOptimizer, allocator: Allocator | None
) -> str:
    """Set a network to what --from names; return a checksum of that.

    Each matrix's ranks come first, and what is left of --init-rank begins as usual, with products
    of 0. With more ranks than --init-rank the smallest singular values of the product are left out.
    With --from-ranks kept the triplets are those of the source, and no others are trained. With
    --prior from the posterior of the source is the prior (`BankIVON.set_prior`).

    Raises:
        UserError: there is nothing of the kind, or it does not fit the network.
    """
    name = f"--from {config.start_from}"
    source = read_source(str(config.start_from), name)
    bank, mean = network.bank, network.bank.mean
    sigma = torch.zeros_like(mean)
    wanted = _with_prior(config, source, name)
    for tensor_name, value in source.drawn.items():
        if tensor_name in network.drawn and network.drawn[tensor_name].shape == value.shape:
            network.set_drawn(tensor_name, value)
    ranks = []
    for matrix, layer in network.adapters.items():
        own = source.factors.get(matrix)
        if own is None:
            ranks.append(0)
            continue
        segments = {p: bank.segments.get(f"{matrix}.lora_{p}") for p in "AEB"}
        into = {p: s.view(mean) for p, s in segments.items() if s is not None}
        found, exact = _fitted(
            own, source.scales[matrix], into, layer.scale, f"{name}: the matrix {matrix}"
        )
        rank = len(found["A"])
        ranks.append(rank)
        for part, value in found.items():
            _first(into[part], part, rank).copy_(value)
        if not wanted:
            continue
        if not exact:
            raise UserError(
                f"{name} --prior from: {matrix} has other parameters there; train with the method "
                "of that run, and with --init-rank of at least its ranks"
            )
        for part in found:
            segment = segments[part]
            assert segment is not None
            factor = source.scales[matrix] / layer.scale if part == scaled_part(into) else 1.0
            spread = source.sigma[f"{matrix}.lora_{part}"] * factor
            _first(segment.view(sigma), part, rank).copy_(spread)
    heads = 0
    for other, place in bank.segments.items():
        known = source.others.get(other)
        if place.role == "adapter" or known is None:
            continue
        if tuple(known.shape) != place.shape:
            logger.info("%s: %s has another shape there; it begins anew", name, other)
            continue
        place.view(mean).copy_(known)
        heads += 1
        if wanted:
            place.view(sigma).copy_(source.sigma[other])
    used = sum(rank > 0 for rank in ranks)
    if source.factors and not used and not heads:
        raise UserError(
            f"{name}: none of its {len(source.factors)} matrices is adapted here; is it of this "
            "--model, and are --target-modules as they were?"
        )
    if bank.theta is not mean:
        bank.theta.copy_(mean)
    bank.publish()
    if config.from_ranks == KEPT and allocator is not None:
        _keep(network, allocator, ranks, name)
    if wanted:
        assert isinstance(optimizer, BankIVON)
        optimizer.set_prior(mean, sigma)
    if not source.factors and not source.others:
        logger.info("%s: the model's weights are those of there, and its adapters begin anew", name)
        return source.checksum
    logger.info(
        "%s: %d of %d matrices and %d other tensors begin as there%s", name, used,
        len(network.adapters), heads, ", which is also the prior" if wanted else "",
    )  # fmt: skip
    return source.checksum


def scaled_part(into: Mapping[str, Tensor]) -> str:
    """Return the part that takes up a difference of scales: E, or B without it."""
    return "E" if "E" in into else "B"


def _fitted(
    own: Mapping[str, Tensor], scale: float, into: Mapping[str, Tensor], new: float, what: str
) -> tuple[dict[str, Tensor], bool]:
    """Return factors of the same product for another scale and parametrisation, or a smaller rank.

    Returns:
        The factors by part, and whether they are the source's own up to the scale.
    """
    a, b, e = own["A"], own["B"], own.get("E")
    if a.shape[1] != into["A"].shape[1] or b.shape[0] != into["B"].shape[0]:
        raise UserError(f"{what} has another shape there; is it of this --model?")
    room = len(into["A"])
    if ("E" in into) == (e is not None) and len(a) <= room:
        found = {"A": a, "B": b, **({} if e is None else {"E": e})}
        part = scaled_part(into)
        return found | {part: found[part] * (scale / new)}, True
    if "E" not in into and len(a) <= room:
        assert e is not None
        return {"A": a * e, "B": b * (scale / new)}, False
    u, values, v = singular_factors(b, a if e is None else a * e)
    rank = min(room, len(values))
    u, values, v = u[:, :rank].float(), values[:rank].float() * (scale / new), v[:rank].float()
    if "E" in into:
        return {"A": v, "E": values[:, None], "B": u}, False
    # a scale may be negative in no method
    root = values.clamp(min=0).sqrt()
    return {"A": root[:, None] * v, "B": u * root}, False


def _first(view: Tensor, part: str, rank: int) -> Tensor:
    """View the part of a factor that belongs to its first ranks."""
    return view[:, :rank] if part == "B" else view[:rank]


def _keep(network: Network, allocator: Allocator, ranks: list[int], name: str) -> None:
    """Fix the ranks: the first of each matrix are kept, all others pruned."""
    assert isinstance(allocator, RankAllocator)
    bank, total = network.bank, sum(ranks)
    if not total:
        raise UserError(f"{name} --from-ranks kept: no matrix has a rank there")
    places = torch.arange(bank.rank, device=bank.mask.device)
    bank.mask.copy_(places < torch.tensor(ranks, device=bank.mask.device)[:, None])
    before = allocator.budget
    allocator.budget = KeptRanks(
        initial=total, target=total, t_init=before.t_init, t_final=before.t_final,
        delta_t=before.delta_t, total=before.total,
    )  # fmt: skip
    allocator.final_step = allocator.budget.final_step
    bank.singular_values(bank.mean).mul_(bank.mask)


def _with_prior(config: RunConfig, source: Source, name: str) -> bool:
    """Return whether the source's posterior is the prior."""
    if config.prior != FROM:
        return False
    if not source.sigma:
        raise UserError(f"{name} --prior from: it has no posterior; name a run trained with ivon")
    return True
