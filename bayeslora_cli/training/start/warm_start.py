"""Begins a run with what was learned before: a run, an adapter of PEFT's, or a merged model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_cli.bayes.ivon import BankIVON
from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.catalogue import FROM, KEPT
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.values import ranks_text
from bayeslora_cli.errors import UserError
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.methods.cutting import singular_factors
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.schedules import KeptRanks
from bayeslora_cli.training.start.source import Source, read_source

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a network begins with, found to fit it."""

    name: str
    """The option with its value, for messages."""
    source: Source
    is_prior: bool
    """Whether the source's posterior is the prior."""
    factors: dict[str, dict[str, Tensor]]
    """By matrix the factors of its first ranks, of matrices that are adapted there too."""
    others: dict[str, Tensor]
    """Other trained weights by name, such as the head's."""
    matrices: int
    """Number of adapted matrices of the network."""

    def rank(self, matrix: str) -> int:
        """Return how many ranks of a matrix begin as there."""
        return len(self.factors[matrix]["A"]) if matrix in self.factors else 0

    def describe(self) -> str:
        """Say in one line what begins as there."""
        if not self.source.factors and not self.source.others:
            return (
                f"{self.name}: the model's weights are those of there, and its adapters begin anew"
            )
        ranks = [self.rank(matrix) for matrix in self.factors]
        shown = f", {ranks_text(ranks)}," if ranks else ""
        return (
            f"{self.name}: {len(ranks)} of {self.matrices} matrices{shown} and {len(self.others)} "
            f"other tensors begin as there{', which is also the prior' if self.is_prior else ''}"
        )


def find_start(config: RunConfig, network: Network) -> Start:
    """Read what --from names, and fit it to a network, which may be on the device meta.

    Raises:
        UserError: there is nothing of the kind, or it does not fit the network.
    """
    name = f"--from {config.start_from}"
    source = read_source(str(config.start_from), name)
    is_prior = config.prior == FROM
    if is_prior and not source.sigma:
        raise UserError(f"{name} --prior from: it has no posterior; name a run trained with ivon")
    start = Start(
        name=name, source=source, is_prior=is_prior,
        factors=_fitting_factors(source, network, name, is_prior=is_prior),
        others=_fitting_others(source, network, name), matrices=len(network.adapters),
    )  # fmt: skip
    if not any(start.rank(matrix) for matrix in start.factors):
        if config.from_ranks == KEPT:
            raise UserError(f"{name} --from-ranks kept: no matrix has a rank there")
        if source.factors and not start.others:
            raise UserError(
                f"{name}: none of its {len(source.factors)} matrices is adapted here; is it of "
                "this --model, and are --target-modules as they were?"
            )
    return start


def _fitting_factors(
    source: Source, network: Network, name: str, *, is_prior: bool
) -> dict[str, dict[str, Tensor]]:
    """Return the source's factors in the network's form, by matrix."""
    factors = {}
    for matrix, layer in network.adapters.items():
        if (own := source.factors.get(matrix)) is None:
            continue
        into = _views(network, matrix, network.bank.mean)
        factors[matrix], exact = _fitted(
            own, source.scales[matrix], into, layer.scale, f"{name}: the matrix {matrix}"
        )
        if is_prior and not exact:
            raise UserError(
                f"{name} --prior from: {matrix} has other parameters there; train with the method "
                "of that run, and with --init-rank of at least its ranks"
            )
    return factors


def _fitting_others(source: Source, network: Network, name: str) -> dict[str, Tensor]:
    """Return the source's other weights that the network trains too, in the same shape."""
    others = {}
    for other, place in network.bank.segments.items():
        known = source.others.get(other)
        if place.role == "adapter" or known is None:
            continue
        if tuple(known.shape) == place.shape:
            others[other] = known
        else:
            logger.info("%s: %s has another shape there; it begins anew", name, other)
    return others


def begin_from(
    config: RunConfig, network: Network, optimizer: BankOptimizer, allocator: Allocator | None
) -> str:
    """Set a network to what --from names; return a checksum of that.

    Each matrix's ranks come first, and what is left of --init-rank begins as usual, with products
    of 0. With more ranks than --init-rank the smallest singular values of the product are left out.
    With --from-ranks kept the triplets are those of the source, and no others are trained. With
    --prior from the posterior of the source is the prior (`BankIVON.set_prior`).

    Raises:
        UserError: raised by `find_start`.
    """
    start = find_start(config, network)
    source, bank, mean = start.source, network.bank, network.bank.mean
    for name, value in source.drawn.items():
        if name in network.drawn and network.drawn[name].shape == value.shape:
            network.set_drawn(name, value)
    for matrix, found in start.factors.items():
        _copy_first(found, _views(network, matrix, mean))
    for other, value in start.others.items():
        bank.segments[other].view(mean).copy_(value)
    if bank.theta is not mean:
        bank.theta.copy_(mean)
    bank.publish()
    if config.from_ranks == KEPT and allocator is not None:
        _keep(network, allocator, [start.rank(matrix) for matrix in network.adapters])
    if start.is_prior:
        assert isinstance(optimizer, BankIVON)
        optimizer.set_prior(mean, _sigma(start, network))
    logger.info("%s", start.describe())
    return source.checksum


def _sigma(start: Start, network: Network) -> Tensor:
    """Return the standard deviations (N,) of the source's posterior; 0: what begins anew."""
    source = start.source
    sigma = torch.zeros_like(network.bank.mean)
    for matrix, factors in start.factors.items():
        into = _views(network, matrix, sigma)
        spreads = {part: source.sigma[f"{matrix}.lora_{part}"] for part in factors}
        part = scaled_part(into)
        spreads[part] = spreads[part] * (source.scales[matrix] / network.adapters[matrix].scale)
        _copy_first(spreads, into)
    for other in start.others:
        network.bank.segments[other].view(sigma).copy_(source.sigma[other])
    return sigma


def _views(network: Network, matrix: str, flat: Tensor) -> dict[str, Tensor]:
    """View the factors of a matrix in a flat tensor (N,), by part."""
    segments = {part: network.bank.segments.get(f"{matrix}.lora_{part}") for part in "AEB"}
    return {part: s.view(flat) for part, s in segments.items() if s is not None}


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
    # no method has a negative scale
    root = values.clamp(min=0).sqrt()
    return {"A": root[:, None] * v, "B": u * root}, False


def _copy_first(factors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy the factors of a matrix, by part, into those of its first ranks."""
    for part, value in factors.items():
        rank = value.shape[1] if part == "B" else len(value)
        first = into[part][:, :rank] if part == "B" else into[part][:rank]
        first.copy_(value)


def _keep(network: Network, allocator: Allocator, ranks: list[int]) -> None:
    """Fix the ranks: the first of each matrix are kept, all others pruned."""
    assert isinstance(allocator, RankAllocator)
    bank, total = network.bank, sum(ranks)
    places = torch.arange(bank.rank, device=bank.mask.device)
    bank.mask.copy_(places < torch.tensor(ranks, device=bank.mask.device)[:, None])
    before = allocator.budget
    allocator.budget = KeptRanks(
        initial=total, target=total, t_init=before.t_init, t_final=before.t_final,
        delta_t=before.delta_t, total=before.total,
    )  # fmt: skip
    allocator.final_step = allocator.budget.final_step
    bank.singular_values(bank.mean).mul_(bank.mask)
