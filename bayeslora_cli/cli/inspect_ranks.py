"""`bayeslora inspect-ranks`: chooses the view and the form in which it is printed."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.figure_file import check_figure
from bayeslora_cli.reports.figures.view_figures import OPTION, save_figure
from bayeslora_cli.reports.ranks.history_reading import load_history
from bayeslora_cli.reports.ranks.run_groups import Group, check_same, load_group, load_groups
from bayeslora_cli.reports.ranks.score_distribution import load_scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks, View
from bayeslora_cli.reports.terminal_text import show

logger = logging.getLogger("bayeslora")

SCHEMA = 1


def inspect_ranks(
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
    if output is not None:
        check_figure(output, OPTION)

    groups: tuple[Group, ...]
    view: View
    if compare:
        a, b = groups = _two_groups(paths)
        name, view = "difference", Difference(a=a, b=b)
    elif history or scores:
        groups = (load_group(paths),)
        name, load = ("history", load_history) if history else ("scores", load_scores)
        view = load(groups[0])
    else:
        groups = load_groups(paths)
        name, view = "ranks", Ranks(group=groups[0])
        if len(groups) > 1:
            name, view = "panels", Panels(groups=groups)

    if output is not None:
        save_figure(view, output)
        logger.info("wrote %s", output)
    if as_json:
        found = {"schema": SCHEMA, "view": name, "groups": [group.to_json() for group in groups]}
        print(json.dumps(found | view.to_json(), allow_nan=False))
    elif as_csv:
        _print_csv(view)
    else:
        show(view.draw, Console())


def _two_groups(paths: Sequence[Path]) -> tuple[Group, Group]:
    if len(paths) != 2:
        raise UserError(
            f"--compare: give two RUNs, not {len(paths)}; for the mean over several runs name the "
            "directory that holds them"
        )
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
