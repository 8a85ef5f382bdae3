"""Options that several commands have; which were typed, and which of those are refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

from bayeslora_cli.config.catalogue import BASE_PRECISIONS
from bayeslora_cli.config.options import flag_of
from bayeslora_cli.errors import UserError

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash the pretrained model's weights anew.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
BasePrecision = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(BASE_PRECISIONS),
        help="Precision of the frozen weights, which adapters will be served on (default: as in "
        "training; without a run: that of --precision).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# of commands that predict with a run
Temperature = Annotated[
    float | None,
    typer.Option(help="Factor of the posterior's variance, with --samples (default: 1)."),
]
SampleSeed = Annotated[
    int | None,
    typer.Option(min=0, max=2**63 - 1, help="Seed of the samples, with --samples (default: 0)."),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Examples per forward pass (default: as in training).")
]
NEW_PLACE = (
    "New place of the pretrained model, which must hold what the run was trained on (default: "
    "where it was)."
)
ModelPlace = Annotated[str | None, typer.Option(help=NEW_PLACE)]


def typed_names(ctx: typer.Context) -> set[str]:
    """Return the names of the parameters that were given on the command line."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def refuse(names: Collection[str], why: str) -> None:
    """Refuse parameters that were given; the message names the first one by the alphabet.

    Raises:
        UserError: there are any.
    """
    if names:
        raise UserError(f"{flag_of(min(names))}: {why}")
