"""`bayeslora inspect-ranks`: chooses the view and the form in which it is printed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.errors import UserError

if TYPE_CHECKING:
    from bayeslora_cli.reports.ranks.run_groups import Group
    from bayeslora_cli.reports.ranks.views import View

SCHEMA = 1


def inspect_ranks(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Run directories, or directories that hold runs at any depth: the mean over those "
            "that differ in the seed alone, a heatmap for each of the others.",
        ),
    ],
    compare: Annotated[
        bool,
        typer.Option("--compare", help="The first RUN minus the second, each a run or many."),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="When each matrix lost its ranks.")
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="The distribution of the scores and the threshold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print a table, a row a matrix, or a change, or a triplet.",
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

    The JSON object: {"schema": 1, "view", "groups": [{"label", "kept", "initial", "runs":
    [{"path", "step", "budget", "criterion"}]}], ...}. `view` is "ranks", "panels" (of runs that
    differ in more than their seed: several groups), "difference" (two groups), "history" or
    "scores" (one, as "ranks"); `kept` is the mean over the runs, `initial`
    counts the triplets before any was pruned, steps count from 0; the other keys are the view's
    own (`to_json` of `Ranks`, `Panels`, `Difference`, `History` and `Scores`).

    Raises:
        UserError: options that exclude each other, or runs, files or a figure that do not allow
            what is asked.
    """
    options = {"--compare": compare, "--history": history, "--scores": scores}
    asked = [option for option, is_asked in options.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: each is a view of its own; ask for one")
    if as_json and as_csv:
        raise UserError("--json and --csv: both go to stdout; ask for one")
    from rich.console import Console

    from bayeslora_cli.reports.figures.figure_file import check_figure
    from bayeslora_cli.reports.figures.view_figures import OPTION, save_figure
    from bayeslora_cli.reports.terminal_text import show as draw

    if output is not None:
        check_figure(output, OPTION)

    groups, name, view = _view(paths, compare=compare, history=history, scores=scores)

    if output is not None:
        save_figure(view, output)
        logger.info("wrote %s", output)
    if as_json:
        found = {"schema": SCHEMA, "view": name, "groups": [group.to_json() for group in groups]}
        print(json.dumps(found | view.to_json(), allow_nan=False))
    elif as_csv:
        _print_csv(view)
    else:
        draw(view.draw, Console())


def _view(
    paths: Sequence[Path], *, compare: bool, history: bool, scores: bool
) -> tuple[tuple[Group, ...], str, View]:
    """The groups of runs, and what is asked for of them with its name."""
    from bayeslora_cli.reports.ranks.history_reading import load_history
    from bayeslora_cli.reports.ranks.run_groups import load_group, load_groups
    from bayeslora_cli.reports.ranks.score_distribution import load_scores
    from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks

    if compare:
        a, b = _two_groups(paths)
        return (a, b), "difference", Difference(a=a, b=b)
    if history or scores:
        group = load_group(paths)
        if history:
            return (group,), "history", load_history(group)
        return (group,), "scores", load_scores(group)
    groups = load_groups(paths)
    if len(groups) > 1:
        return groups, "panels", Panels(groups=groups)
    return groups, "ranks", Ranks(group=groups[0])


def _two_groups(paths: Sequence[Path]) -> tuple[Group, Group]:
    if len(paths) != 2:
        raise UserError(
            f"--compare: give two RUNs, not {len(paths)}; for the mean over several runs name the "
            "directory that holds them"
        )
    from bayeslora_cli.reports.ranks.run_groups import check_same, load_group

    a, b = (load_group([path]) for path in paths)
    check_same((a.runs[0], a.reports[0]), (b.runs[0], b.reports[0]), same_init_rank=False)
    return a, b


def _print_csv(view: View) -> None:
    rows = view.rows()
    first = next(rows)
    writer = csv.DictWriter(sys.stdout, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)
