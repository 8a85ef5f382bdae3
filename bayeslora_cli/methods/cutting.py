"""Cuts a trained network to fewer ranks, without training, by one threshold for all matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_cli.bayes.criteria import ElementStatistics, load_criterion
from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.catalogue import CRITERIA, METHODS, OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError
from bayeslora_cli.methods.adalora.pruning import prune
from bayeslora_cli.methods.adalora.rank_allocator import largest
from bayeslora_cli.methods.network import Network
from bayeslora_cli.runs.directory import RunDir

SINGULAR_VALUES = "singular-values"
"""Orders the ranks of all matrices by the singular values of the products B diag(E) A."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GradientAverages:
    """What criteria that need gradients read, of a run that has not kept it."""

    sensitivity: Tensor
    """(adapters,) mean of I = |theta * gradient| over batches."""
    uncertainty: Tensor
    """(adapters,) mean of |I - its mean|."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """A network's parameters at fewer ranks."""

    mean: Tensor
    """(N,)"""
    mask: Tensor
    """Kept triplets (n, r), 0 or 1."""

    def apply(self, network: Network) -> None:
        """Set the network's mean and mask."""
        network.bank.mean.copy_(self.mean)
        network.bank.mask.copy_(self.mask)


def check_order(by: str, config: RunConfig) -> None:
    """Check, before a model is loaded, that a run's ranks can be ordered so.

    Raises:
        UserError: they cannot; the message says by what they can.
    """
    if by != SINGULAR_VALUES and by not in CRITERIA:
        known = ", ".join((SINGULAR_VALUES, *CRITERIA))
        raise UserError(f"--by {by}: choose one of {known}")
    method = METHODS[config.method]
    if not method.has_ranks or "quantized" in method.formats:
        raise UserError(
            f"--by {by}: a run of --method {config.method} has no real factors whose ranks could "
            "be cut"
        )
    if by == SINGULAR_VALUES:
        return
    if not method.allocates_ranks:
        raise UserError(
            f"--by {by}: a run of --method {config.method} has no triplets to score; use --by "
            f"{SINGULAR_VALUES}"
        )
    entry = CRITERIA[by]
    if by == config.criterion:
        return
    if entry.needs_posterior and not OPTIMIZERS[config.optimizer].posterior:
        raise UserError(
            f"--by {by}: it needs sigma, and --optimizer {config.optimizer} finds a point without"
        )


def needs_gradients(by: str, config: RunConfig) -> bool:
    """Return whether an order needs averages of gradients that the run has not kept."""
    return by in CRITERIA and by != config.criterion and CRITERIA[by].needs_gradient


def cut(
    run: RunDir, config: RunConfig, network: Network, posterior: Posterior, rank: float, by: str,
    *, gradients: GradientAverages | None = None, option: str = "--target-rank",
) -> Cut:  # fmt: skip
    """Cut a run's network to a mean rank per matrix; the network itself is not changed.

    The run's own criterion orders triplets by the scores that the run has saved; other criteria by
    scores of the posterior's mean and sigma, as the allocation computes them. With
    `SINGULAR_VALUES` each product scale B diag(E) A is written as its singular value decomposition,
    and the largest singular values of all matrices are kept: of all ways to leave out as many
    ranks, the one that changes the weights least, in the Frobenius norm (Eckart and Young, 1936;
    PARA, arXiv 2604.27796).

    Args:
        rank: mean number of ranks that a matrix keeps; it need not be whole.
        gradients: averages at the posterior's mean, if `needs_gradients`.
        option: the option that named it, for messages.
    Raises:
        UserError: the run has fewer ranks, or raised by `check_order`.
    """
    check_order(by, config)
    bank = network.bank
    n, kept = len(bank.matrices), int(bank.mask.sum())
    wanted = round(rank * n)
    if not 0 <= wanted <= kept:
        raise UserError(
            f"{option} {rank:g}: {rank:g} x {n} matrices are {wanted} triplets, the run kept "
            f"{kept}; give {kept / n:g} or less"
        )
    if by == SINGULAR_VALUES:
        return _by_singular_values(network, posterior.mean, wanted)
    if by == config.criterion:
        return Cut(mean=posterior.mean.clone(), mask=prune(run, network, wanted, in_all=True))
    statistics = ElementStatistics(
        mean=bank.adapters(posterior.mean),
        sigma=None if (s := getattr(posterior, "sigma", None)) is None else bank.adapters(s),
        sensitivity=None if gradients is None else gradients.sensitivity,
        uncertainty=None if gradients is None else gradients.uncertainty,
    )
    scores = bank.triplet_scores(load_criterion(by).score(statistics))
    scores = scores.masked_fill(bank.mask == 0, -torch.inf)
    return Cut(mean=posterior.mean.clone(), mask=largest(scores, wanted))


def singular_factors(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose a product up down without forming it, in float64.

    Args:
        up: (out, k).
        down: (k, in).
    Returns:
        U (out, m), the singular values (m,), falling, and V' (m, in), where m = min(k, out, in).
    """
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().t())
    u, values, v = torch.linalg.svd(upper @ lower.t(), full_matrices=False)
    return left @ u, values, v @ right.t()


@torch.no_grad()
def _by_singular_values(network: Network, mean: Tensor, wanted: int) -> Cut:
    bank = network.bank
    mean, mask = mean.clone(), bank.mask.clone()
    scores = torch.full_like(mask, -torch.inf)
    for index, (name, layer) in enumerate(network.adapters.items()):
        a, e, b = (
            None if segment is None else segment.view(mean)
            for segment in (bank.segments.get(f"{name}.lora_{part}") for part in "AEB")
        )
        assert a is not None
        assert b is not None
        kept = mask[index].bool()
        down = (a if e is None else a * e)[kept]
        u, values, v = singular_factors(b[:, kept], down)
        scores[index, : len(values)] = (abs(layer.scale) * values).to(scores.dtype)
        a.zero_()
        b.zero_()
        a[: len(v)] = v.to(a.dtype)
        if e is None:  # the singular value is divided evenly between the two factors
            a[: len(v)] = (values.sqrt()[:, None] * v).to(a.dtype)
            b[:, : len(v)] = (u * values.sqrt()).to(b.dtype)
        else:
            b[:, : len(v)] = u.to(b.dtype)
            e.zero_()
            e[: len(v), 0] = values.to(e.dtype)
    mask = largest(scores, wanted)
    for index, name in enumerate(network.adapters):
        gone = mask[index] == 0
        for part in "AE":
            if (segment := bank.segments.get(f"{name}.lora_{part}")) is not None:
                segment.view(mean)[gone] = 0
        bank.segments[f"{name}.lora_B"].view(mean)[:, gone] = 0
    return Cut(mean=mean, mask=mask)
