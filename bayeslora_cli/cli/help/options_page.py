"""Writes docs/options.md: every option of every command, with its default.

python -m bayeslora_cli.cli.help.options_page > docs/options.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.cli.help.command import FULL_HELP
from bayeslora_cli.config.catalogue import METHODS, OPTIMIZERS
from bayeslora_cli.config.files.presets import values_in_presets
from bayeslora_cli.config.run_config import OPTIONS

COMMAND = "python -m bayeslora_cli.cli.help.options_page > docs/options.md"
_INTRODUCTION = f"""\
<!-- made by: {COMMAND} -->
# Options

Every option of every command. `--help` of a command shows only those in **bold**, `{FULL_HELP}`
shows all. An option of `train` is also a key of [presets](training.md#presets), with underscores
instead of hyphens.

The column "presets" has the values of the built-in presets that set the option, from the smallest
to the largest; which one a run gets depends on its task and method. `bayeslora presets NAME` prints
a preset with all its values. "Only with" names the methods and optimizers with which the option has
an effect.
"""


def page() -> str:
    """Return the page in Markdown."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [_INTRODUCTION]
    for name, command in commands.items():
        summary = " ".join(command.help.split("\n\n")[0].split())
        parts += [f"## bayeslora {name}\n", f"{summary}\n"]
        parts += [f"{block}\n" for block in _blocks(command)]
    return "\n".join(parts)


def _blocks(command: Any) -> Iterator[str]:
    """Yield one table per panel of the command's help."""
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            panels.setdefault(parameter.rich_help_panel or "", []).append(parameter)
    of_train = command.name == "train"
    head = ["option", "what it does", *(["default", "presets", "only with"] * of_train)]
    for panel, parameters in panels.items():
        if panel:
            yield f"### {panel}" if of_train else f"**{panel}**"
        rows = []
        for parameter in parameters:
            flag = f"`{parameter.opts[0]}`"
            named = flag if parameter.name in command.rare else f"**{flag}**"
            rows.append([named, *_cells(parameter, of_train=of_train)])
        lines = [head, ["---"] * len(head), *rows]
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(parameter: Any, *, of_train: bool) -> list[str]:
    """Return what an option does; for train's options also default, presets and needed method."""
    if not of_train:
        default = parameter.default
        is_told = parameter.is_flag or default is None or "(default: " in parameter.help
        return [_escaped(parameter.help + ("" if is_told else f" Default: {default}."))]
    option = OPTIONS.get(parameter.name)
    if option is None:
        return [_escaped(parameter.help), "", "", ""]
    needed = [
        ", ".join(f"`{name}`" for name, entry in entries.items() if option.name in entry.options)
        for entries in (METHODS, OPTIMIZERS)
    ]
    return [
        _escaped(f"{option.meaning()}."),
        _escaped(option.shown_default()),
        values_in_presets().get(option.name, ""),
        "; ".join(filter(None, needed)),
    ]


def _escaped(text: str) -> str:
    """Escape text for a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    print(page(), end="")
