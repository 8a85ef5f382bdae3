"""Sentences about the catalogue's entries, for messages and the help."""

from __future__ import annotations

from bayeslora_cli.config.catalogue import CRITERIA, FORMATS, METHODS, OPTIMIZERS


def posterior_optimizers() -> str:
    """List the optimizers that keep a posterior."""
    return " or ".join(name for name, entry in OPTIMIZERS.items() if entry.posterior)


def usual_optimizers() -> str:
    """Write the default optimizer of each method."""
    usual = [entry.default_optimizer for entry in METHODS.values()]
    most = max(usual, key=usual.count)
    others = [
        f"{e.default_optimizer} for {m}" for m, e in METHODS.items() if e.default_optimizer != most
    ]
    return ", ".join([*others, f"else {most}"])


def described_criteria() -> str:
    """List the criteria, first those that need a posterior."""
    needing = [name for name, entry in CRITERIA.items() if entry.needs_posterior]
    others = [name for name in CRITERIA if name not in needing]
    return f"{', '.join(needing)} (with {posterior_optimizers()} only), {', '.join(others)}"


def usual_criteria() -> str:
    """Write the default criterion, with and without a posterior."""
    without = next(name for name, entry in CRITERIA.items() if not entry.needs_posterior)
    optimizers = " or ".join(name for name, entry in OPTIMIZERS.items() if not entry.posterior)
    return f"{next(iter(CRITERIA))}; {without} with {optimizers}"


def usual_ranks() -> str:
    """Write the default initial rank of each method whose ranks change."""
    return "; ".join(
        f"{entry.initial_rank(2)} for a target of 2 in {name}"
        if entry.free_rank is None
        else f"{entry.free_rank} in {name}"
        for name, entry in METHODS.items()
        if entry.has_ranks and not entry.fixed_rank
    )


def described_formats() -> str:
    """List the export formats, each with its bound."""
    return ", ".join(f"{name} ({entry.bound:g})" for name, entry in FORMATS.items())
