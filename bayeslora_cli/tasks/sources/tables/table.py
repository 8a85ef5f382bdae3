"""`Table`: rows with named columns, as a file or a data set holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bayeslora_cli.errors import DataError

CONLL = (".conll", ".bio", ".iob", ".iob2")
"""Of files with a word and its tag per line."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", *CONLL)
"""Of the files that can be read."""
HUB_FORM = "owner/name[:config][@split]"
"""How a data set on the hub is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows with named columns. Values are those of the source; in csv and tsv all are text."""

    option: str
    """The option that named the source."""
    source: str
    """The file, or the hub's name and split, for messages."""
    names: tuple[str, ...]
    """Names of the columns, each once; pandas gives its index an empty name."""
    rows: int
    """Number of rows, at least one."""
    read_column: Callable[[str], list[Any]]
    """Reads a column's values by its name. Only used columns are read: others may be images."""
    lines: Sequence[int] | None = None
    """The line on which each row starts, from 1; None: the source has no lines."""
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names of the columns that hold class indices, as the hub lists them."""
    spelled: bool = False
    """Whether numbers are spelled out as text, as in csv and tsv."""
    first: int = 0
    """The place in the source of the first row, if these are some of its rows."""

    @property
    def title(self) -> str:
        """The table as the user typed it, for messages about the whole table."""
        return f"{self.option} {self.source}"

    def where(self, row: int) -> str:
        """Return the place of a row, which counts from 0, for messages."""
        if self.lines is None:
            return f"{self.source}, row {self.first + row}"
        return f"{self.source}, line {self.lines[row]}"

    def part(self, rows: slice) -> Table:
        """Return the table of some consecutive rows."""
        places = range(self.rows)[rows]
        return replace(
            self,
            rows=len(places),
            read_column=lambda name: self.read_column(name)[rows],
            lines=None if self.lines is None else self.lines[rows],
            first=self.first + places.start,
        )


def check_names(names: Sequence[str], where: str) -> None:
    """Check that there are columns, each of another name.

    Raises:
        DataError: there are none, or two of one name.
    """
    if not names:
        raise DataError(f"{where}: found no columns; expected a name for each")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: found the column {twice[0]!r} twice; expected different names")


def shown(names: Sequence[str]) -> str:
    """List names for a message, shortened."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(repr(name[:40]) for name in names[:20]) or "none") + more


def listed(names: Sequence[str]) -> str:
    """Write one or more names as a sentence does: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
