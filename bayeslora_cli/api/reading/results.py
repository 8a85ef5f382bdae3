"""`results` and `inspect_ranks`: many runs side by side, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results import table_drawing
from bayeslora_cli.reports.results.outcomes import AT
from bayeslora_cli.reports.results.rows import Row, load_results
from bayeslora_cli.reports.results.table import Table, read_reference
from bayeslora_cli.runs.directory import RunDir, runs_below

if TYPE_CHECKING:
    from rich.text import Text

    from bayeslora_cli.reports.ranks.inspection import Inspection

VIEWS = ("ranks", "difference", "history", "scores")
"""Names of the views that `inspect_ranks` can show."""


class Results:
    """The scores of many runs by method row and task, as in the paper's Table I."""

    def __init__(self, table: Table) -> None:
        """`table`: the rows, with published values to compare with if there are any."""
        self._table = table

    @property
    def rows(self) -> tuple[Row, ...]:
        """Scores, one row per method, optimizer, criterion, rank and settings."""
        return self._table.results.rows

    def table(self, width: int = 100) -> str:
        """Return the table as text of `width` columns: means and standard deviations over seeds."""
        return str(self.draw(width=width, colour=False, unicode=True))

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw the table for a terminal."""
        return table_drawing.draw(self._table, width=width, colour=colour, unicode=unicode)

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON object: see `reports.results.table.Table.to_json`."""
        return self._table.to_json()

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        return table_drawing.markdown(self._table)

    def to_latex(self) -> str:
        """Return the table in LaTeX, for booktabs."""
        return table_drawing.latex(self._table)

    def to_csv(self) -> str:
        """Return csv with one line per row and column of the table."""
        return table_drawing.as_csv(self._table)

    def paired(self, a: str, b: str) -> dict[str, Any]:
        """Test whether row `a` differs from row `b` by more than noise.

        The pairs are the tasks and seeds that both have. The test is Wilcoxon's signed-rank test,
        or with few pairs Student's t-test. For the keys and units see
        `reports.results.paired_test.compare`.

        Args:
            a, b: a row's name, or words of it, such as "ivon snr".
        Raises:
            UserError: a name fits no row or several, or `compare` cannot pair the rows.
        """
        from bayeslora_cli.reports.results.paired_test import compare, find_row

        first, second = (find_row(self._table.results, name) for name in (a, b))
        return compare(first, second)

    def __repr__(self) -> str:
        return self.table()


def results(
    *paths: str | Path, at: str | None = None, reference: str | Path | None = None
) -> Results:
    """Read the results of the runs at `paths`, or anywhere below them.

        print(bl.results("runs").table())

    Args:
        at: the evaluation that counts: best_at_budget (None; with the final ranks), best (of all,
            as the paper counts) or last.
        reference: a JSON file of published values to compare with, in the form of `to_json`.
    Raises:
        UserError: there is no run, or a file is corrupt.
    """
    if at not in (None, *AT):
        raise UserError(f"--at {at}: choose one of {', '.join(AT)}{nearest(str(at), AT)}")
    expected = None if reference is None else read_reference(Path(reference))
    found = load_results([Path(path) for path in paths], at or AT[0])
    return Results(Table(results=found, reference=expected))


def inspect_ranks(*paths: str | Path, view: str = "ranks") -> Inspection:
    """Show where the ranks of the runs at `paths`, or below them, went.

    Args:
        view: ranks (the mean over runs that differ only in the seed, a panel for each of the
            others), difference (the first path minus the second), history or scores.
    Raises:
        UserError: there is no such view or no run, or the view cannot show these runs.
    """
    if view not in VIEWS:
        raise UserError(f"view {view}: choose one of {', '.join(VIEWS)}{nearest(view, VIEWS)}")
    from bayeslora_cli.reports.ranks.inspection import inspect

    return inspect([Path(path) for path in paths], view)


def holds_runs(path: str | Path) -> bool:
    """Return whether `path` is a directory that is not a run but holds runs."""
    where = Path(path)
    return where.is_dir() and not RunDir(where).started and any(True for _ in runs_below(where))
