"""`bayeslora eval` of several runs: the table of their results, in the form that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.outcomes import AT
from bayeslora_cli.reports.results.rows import load_results
from bayeslora_cli.reports.results.table import Table, read_reference
from bayeslora_cli.runs.directory import RunDir, runs_below


def is_collection(path: Path) -> bool:
    """Whether `path` is a directory that is no run itself but holds some."""
    return path.is_dir() and not RunDir(path).started and any(True for _ in runs_below(path))


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
        forms: json, markdown, latex or csv; none of them: for the terminal.
        paired: two rows to test against each other.
    Raises:
        UserError: options that exclude each other, no runs, no such rows.
    """
    asked = [f"--{form}" for form, is_asked in forms.items() if is_asked]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: all go to stdout; ask for one")
    if at not in (None, *AT):
        raise UserError(f"--at {at}: choose one of {', '.join(AT)}{nearest(str(at), AT)}")
    expected = None if reference is None else read_reference(reference)
    results = load_results(paths, at or AT[0])
    table = Table(results=results, reference=expected)
    test = None
    if paired is not None:
        from bayeslora_cli.reports.results.paired_test import compare, find_row

        a, b = (find_row(results, name) for name in paired)
        test = compare(a, b)
    form = asked[0] if asked else ""
    if form == "--json":
        print(json.dumps({**table.to_json(), **({"paired": test} if test else {})}))
        return
    from bayeslora_cli.reports.results import table_drawing

    if form == "":
        from rich.console import Console

        from bayeslora_cli.reports.terminal_text import show

        show(partial(table_drawing.draw, table), Console())
    else:
        pasted = {
            "--markdown": table_drawing.markdown,
            "--latex": table_drawing.latex,
            "--csv": table_drawing.as_csv,
        }
        print(pasted[form](table))
    if test is not None and form != "--csv":
        from bayeslora_cli.reports.results.paired_test import describe

        before = {"--latex": "% "}.get(form, "")
        print()
        print("\n".join(before + line for line in describe(test).splitlines()))
