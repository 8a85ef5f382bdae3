"""`bayeslora inspect-ranks`: chooses the view and the form in which it is printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora_cli.api.reading import results
from bayeslora_cli.cli.help.shared_options import AsJson
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.terminal_text import say

_VIEWS = {"--compare": "difference", "--history": "history", "--scores": "scores"}


def inspect_ranks(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Run directories, or directories that hold runs at any depth: the mean over those "
            "that differ only in the seed, a heatmap for each of the others.",
        ),
    ],
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Show the first RUN minus the second, each one run or many."
        ),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show when each matrix lost its ranks.")
    ] = False,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Show the distribution of the scores and the threshold."),
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print a table with one row per matrix, change or triplet.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write a figure as well: FILE.png, .svg or .pdf (needs matplotlib)."),
    ] = None,
) -> None:
    """Show where the ranks of finished runs went: kinds of matrices by layers."""
    set_up_logging(quiet=False, verbose=False)
    show(
        runs,
        compare=compare,
        history=history,
        scores=scores,
        as_json=as_json,
        as_csv=as_csv,
        output=output,
    )


def show(
    paths: Sequence[Path],
    *,
    compare: bool,
    history: bool,
    scores: bool,
    as_json: bool,
    as_csv: bool,
    output: Path | None,
) -> None:
    """Print where the ranks of the runs at `paths` went, and write the figure `output`.

    The JSON object is `Inspection.to_json`'s.

    Raises:
        UserError: options exclude each other, or the runs, their files or the figure's file do not
            allow the request.
    """
    options = {"--compare": compare, "--history": history, "--scores": scores}
    asked = [option for option, is_asked in options.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: each is another view; give only one")
    if as_json and as_csv:
        raise UserError("--json and --csv: both go to stdout; give only one")
    from rich.console import Console

    from bayeslora_cli.reports.figures.figure_file import check_figure
    from bayeslora_cli.reports.figures.view_figures import OPTION
    from bayeslora_cli.reports.terminal_text import show as draw

    if output is not None:
        check_figure(output, OPTION)

    found = results.inspect_ranks(*paths, view=_VIEWS[asked[0]] if asked else "ranks")
    if output is not None:
        found.save(output)
        logger.info("wrote %s", output)
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
    elif as_csv:
        _print_csv(found.rows())
    else:
        draw(found.draw, Console())


def _print_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)  # some methods have more columns
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    say(file.getvalue().removesuffix("\n"))
