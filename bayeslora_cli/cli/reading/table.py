"""`bayeslora table`: prints the results of many runs by method and task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bayeslora_cli.api.reading.results import results
from bayeslora_cli.cli.progress import set_up_logging
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.terminal_text import say

_PANEL = "The table of several runs"  # of the help

# eval takes these options as well: the table was once printed only there
At = Annotated[
    str | None,
    typer.Option(
        help="Evaluation that counts: best_at_budget (with the final ranks), best (of all, as the "
        "paper counts) or last (default: best_at_budget).",
        rich_help_panel=_PANEL,
    ),
]
Markdown = Annotated[
    bool, typer.Option("--markdown", help="Print the table in Markdown.", rich_help_panel=_PANEL)
]
Latex = Annotated[
    bool,
    typer.Option("--latex", help="Print the table in LaTeX, for booktabs.", rich_help_panel=_PANEL),
]
AsCsv = Annotated[
    bool,
    typer.Option("--csv", help="Print csv with one line per row and task.", rich_help_panel=_PANEL),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="Show differences from published values: a JSON table, as --json has it.",
        rich_help_panel=_PANEL,
    ),
]
Paired = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="ROW ROW",
        help="Test whether the first row differs from the second by more than noise, over the "
        "tasks and seeds that both have; a row by its name or words of it, such as 'ivon snr'.",
        rich_help_panel=_PANEL,
    ),
]


def table(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Directories of finished runs, or directories that hold runs at any depth.",
        ),
    ],
    at: At = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_PANEL)
    ] = False,
    markdown: Markdown = False,
    latex: Latex = False,
    as_csv: AsCsv = False,
    reference: ReferenceFile = None,
    paired: Paired = None,
) -> None:
    """Print the results of finished runs by method and task, as in the paper's Table I.

    A cell has the mean and standard deviation of runs that differ only in their seeds.
    Nothing is evaluated anew.
    """
    set_up_logging(quiet=False, verbose=False)
    forms = {"json": as_json, "markdown": markdown, "latex": latex, "csv": as_csv}
    print_table(runs, at=at, forms=forms, reference=reference, paired=paired)


def print_table(
    paths: Sequence[Path],
    *,
    at: str | None = None,
    forms: Mapping[str, bool],
    reference: Path | None = None,
    paired: tuple[str, str] | None = None,
) -> None:
    """Print the table of the runs at `paths`, or below them.

    Args:
        forms: json, markdown, latex or csv; none: draw for the terminal.
        paired: two rows to test against each other.
    Raises:
        UserError: options exclude each other, or there are no such runs or rows.
    """
    asked = [f"--{form}" for form, is_asked in forms.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: all go to stdout; give only one")
    found = results(*paths, at=at, reference=reference)
    test = None if paired is None else found.paired(*paired)
    form = asked[0] if asked else ""
    if form == "--json":
        print(json.dumps({**found.to_json(), **({"paired": test} if test else {})}))
        return
    if form == "":
        from rich.console import Console

        from bayeslora_cli.reports.terminal_text import show

        show(found.draw, Console())
    else:
        pasted = {
            "--markdown": found.to_markdown,
            "--latex": found.to_latex,
            "--csv": found.to_csv,
        }
        say(pasted[form]())
    if test is not None and form != "--csv":
        from bayeslora_cli.reports.results.paired_test import describe

        before = {"--latex": "% "}.get(form, "")
        print()
        say("\n".join(before + line for line in describe(test).splitlines()))
