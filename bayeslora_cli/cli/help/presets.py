"""`bayeslora presets`: lists the built-in presets, or prints one with all its values."""

from __future__ import annotations

from typing import Annotated

import typer

from bayeslora_cli.config.files.presets import list_presets
from bayeslora_cli.config.files.resolved_preset import resolved_preset


def print_presets() -> None:
    """Print one line per built-in preset: its name and its purpose."""
    for name, what in list_presets().items():
        print(f"{name:18} {what}")


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="A preset, or a .toml file, to print with all its values.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Values for this task (default: the preset's).")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Values for this method (as for train).")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Values for this optimizer (as for train).")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="Values for this criterion (as for train).")
    ] = None,
) -> None:
    """List the built-in presets, or print one as train would use it.

    One preset is printed as TOML, with every value and where it comes from.
    Save it, change it, and give it to train as --preset FILE.
    """
    if name is None:
        print_presets()
        return
    given = {"task": task, "method": method, "optimizer": optimizer, "criterion": criterion}
    typed = {option: value for option, value in given.items() if value is not None}
    print(resolved_preset(name, typed), end="")
