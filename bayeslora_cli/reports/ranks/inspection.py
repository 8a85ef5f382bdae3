"""`Inspection`: shows where the ranks of finished runs went, in the requested view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.ranks.history_reading import load_history
from bayeslora_cli.reports.ranks.run_groups import Group, check_same, load_group, load_groups
from bayeslora_cli.reports.ranks.score_distribution import load_scores
from bayeslora_cli.reports.ranks.views import Difference, Panels, Ranks, View

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Inspection:
    """Groups of runs, and a view of them."""

    groups: tuple[Group, ...]
    name: str
    """One of ranks, panels, difference, history, scores."""
    view: View

    def to_json(self) -> dict[str, Any]:
        """Return {"schema": 1, "view", "groups": [{"label", "kept", "initial", "runs": [{"path",
        "step", "budget", "criterion"}]}], ...}.

        `view` is "ranks", "panels" (of runs that differ in more than their seed: several groups),
        "difference" (two groups), "history" or "scores" (one, as "ranks"); `kept` is the mean over
        the runs, `initial` counts the triplets before any was pruned, steps count from 0; the other
        keys are the view's own (`to_json` of `Ranks`, `Panels`, `Difference`, `History` and
        `Scores`).
        """
        found = {"schema": SCHEMA, "view": self.name, "groups": [g.to_json() for g in self.groups]}
        return found | self.view.to_json()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table: one per matrix, per change and matrix, or per triplet."""
        return self.view.rows()

    def draw(self, *, width: int = 100, colour: bool = False, unicode: bool = True) -> Text:
        """Draw for a terminal of `width` columns."""
        return self.view.draw(width=width, colour=colour, unicode=unicode)

    def save(self, path: Path | str) -> None:
        """Write a figure: FILE.png, .svg or .pdf.

        Raises:
            UserError: the suffix is another, matplotlib is missing, or the file cannot be written.
        """
        from bayeslora_cli.reports.figures.view_figures import save_figure

        save_figure(self.view, Path(path))

    def __repr__(self) -> str:
        return str(self.draw())


def inspect(paths: Sequence[Path], view: str = "ranks") -> Inspection:
    """Read the runs at `paths`, or below them.

    Args:
        view: ranks (of several groups: panels), difference, history or scores.
    Raises:
        UserError: the view cannot show these runs, or their files are missing or corrupt.
    """
    if view == "difference":
        a, b = _two_groups(paths)
        return Inspection(groups=(a, b), name=view, view=Difference(a=a, b=b))
    if view != "ranks":
        group = load_group(paths)
        found: View = load_history(group) if view == "history" else load_scores(group)
        return Inspection(groups=(group,), name=view, view=found)
    groups = load_groups(paths)
    if len(groups) > 1:
        return Inspection(groups=groups, name="panels", view=Panels(groups=groups))
    return Inspection(groups=groups, name=view, view=Ranks(group=groups[0]))


def _two_groups(paths: Sequence[Path]) -> tuple[Group, Group]:
    if len(paths) != 2:
        raise UserError(
            f"--compare: give two RUNs, not {len(paths)}; for the mean over several runs name the "
            "directory that holds them"
        )
    a, b = (load_group([path]) for path in paths)
    check_same((a.runs[0], a.reports[0]), (b.runs[0], b.reports[0]), same_init_rank=False)
    return a, b
