"""Typer parameters of `bayeslora train`, made from the fields of `RunConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args

import typer

from bayeslora_cli.config.options import PANELS, Option
from bayeslora_cli.config.run_config import OPTIONS

_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of `RunConfig`; it gets them as `**options`.

    The keys are field names; options that were not typed are None. The help shows the options among
    the command's own, panel by panel.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named += [_parameter(option) for option in OPTIONS.values() if option.typed]
    command.__signature__ = inspect.Signature(sorted(named, key=_place))  # type: ignore[attr-defined]
    return command


def typed_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed, by field name; comma lists become tuples.

    Lists of a sweep stay text: `sweeps.grid.expand` reads them.
    """
    return {
        name: tuple(part for part in value.split(",") if part) if OPTIONS[name].is_list else value
        for name, value in options.items()
        if value is not None
    }


def _parameter(option: Option) -> inspect.Parameter:
    """Make the parameter of one option; its value is None if not typed."""
    is_text = option.is_list or (option.sweep is not None and option.sweep_flag is None)
    kind = str if is_text else _TYPES[option.type.removesuffix(" | None")]
    shown = typer.Option(
        option.flag, help=option.text(), rich_help_panel=option.panel, show_default=False
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, shown],
    )


def _place(parameter: inspect.Parameter) -> int:
    """Return the order of a parameter by its panel; those without a panel come first."""
    panels = [getattr(a, "rich_help_panel", None) for a in get_args(parameter.annotation)]
    return max((PANELS.index(panel) for panel in panels if panel in PANELS), default=-1)
