"""Draws the table of results for a terminal, in Markdown, in LaTeX and in csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from textwrap import wrap

from rich.text import Text

from bayeslora_cli.reports.results.table import Entry, Table
from bayeslora_cli.reports.terminal_text import printable

NAME = 28
"""Width of a row's name, in columns, if the table is wider than the terminal."""
MARKS = {"best": "*", "second": "'", "": ""}
STYLES = {"best": "bold", "second": "underline", "": ""}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def draw(table: Table, *, width: int, colour: bool, unicode: bool) -> Text:
    """Draw for a terminal: standard deviations beside the means, or below if that is too wide.

    A table that is still too wide is cut into blocks below each other.
    """
    for beside, name in ((True, 200), (False, 200), (False, NAME)):
        drawing = _Drawing(table, name=name, beside=beside, colour=colour, unicode=unicode)
        if drawing.width <= width:
            break
    lines = [line for block in drawing.blocks(width) for line in (*block, Text())]
    notes = table.caption()
    if table.marks:
        notes += "; bold: best, underlined: second" if colour else "; *: best, ': second"
    lines += [Text(line) for line in wrap(printable(notes, unicode=unicode), max(20, width))]
    return Text("\n").join(lines)


class _Drawing:
    """Draws a table; it knows its sizes in columns and draws its lines."""

    def __init__(
        self, table: Table, *, name: int, beside: bool, colour: bool, unicode: bool
    ) -> None:
        self.heads = [printable(head, unicode=unicode) for head in table.titles()[1:]]
        titles = list(table.lines())
        self.names = [wrap(printable(n, unicode=unicode), name) for n, _ in titles]
        columns = [
            _column(entries, beside=beside, colour=colour, sign="±" if unicode else "+-")
            for entries in zip(*(entries for _, entries in titles), strict=True)
        ]
        self.cells = list(zip(*columns, strict=True))  # rows of columns of lines
        self.widths = [
            max(len(head), *(len(line) for lines in column for line in lines))
            for head, column in zip(self.heads, columns, strict=True)
        ]
        self.first = max(len(line) for lines in self.names for line in lines)
        self.width = self.first + sum(2 + width for width in self.widths)
        self.colour = colour

    def blocks(self, width: int) -> Iterator[list[Text]]:
        """Yield blocks of the columns that fit beside each other, at least one per block."""
        start = 0
        while start < len(self.heads):
            end, used = start + 1, self.first + 2 + self.widths[start]
            while end < len(self.heads) and used + 2 + self.widths[end] <= width:
                used += 2 + self.widths[end]
                end += 1
            yield self.block(slice(start, end))
            start = end

    def block(self, part: slice) -> list[Text]:
        """Draw the lines of some columns."""
        heads = [Text(head, "dim" if self.colour else "") for head in self.heads[part]]
        lines = [self.line("", heads, part)]
        for names, cells in zip(self.names, self.cells, strict=True):
            shown = cells[part]
            for number in range(max(len(names), *map(len, shown))):
                name = names[number] if number < len(names) else ""
                texts = [c[number] if number < len(c) else Text() for c in shown]
                lines.append(self.line(name, texts, part))
        return lines

    def line(self, name: str, texts: Sequence[Text], part: slice) -> Text:
        """Draw one line, with its cells right-aligned."""
        line = Text(f"{name:{self.first}}")
        for text, width in zip(texts, self.widths[part], strict=True):
            line.append(" " * (2 + width - len(text))).append_text(text)
        line.rstrip()
        return line


def _column(entries: Sequence[Entry], *, beside: bool, colour: bool, sign: str) -> list[list[Text]]:
    """Return the lines of a column's cells, aligned at their decimal points."""
    marked = not colour and any(entry.mark for entry in entries)
    spread = max((len(entry.spread) for entry in entries if entry.spread), default=0)
    column = []
    for entry in entries:
        value = Text(entry.value, STYLES[entry.mark] if colour else "")
        if marked:
            value.append(MARKS[entry.mark] or " ")
        text = f"{sign}{entry.spread}" if entry.spread else ""
        if beside and spread:
            value.append(f" {text:>{len(sign) + spread}}")
        column.append([value, Text(text + " " * marked)] if text and not beside else [value])
    return column


# ---- to be pasted


def markdown(table: Table) -> str:
    """Write in Markdown as GitHub reads it: best in bold, second underlined."""
    forms = {"best": "**{}**", "second": "<ins>{}</ins>", "": "{}"}
    rows = [[_literal(t) for t in table.titles()], ["---", *("---:" for _ in table.titles()[1:])]]
    for name, entries in table.lines():
        cells = [
            forms[e.mark].format(e.value) + (f" ± {e.spread}" if e.spread else "") for e in entries
        ]
        rows.append([_literal(name), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"({table.caption()}; bold: best, underlined: second)"])


def _literal(text: str) -> str:
    """Escape text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text)


def latex(table: Table) -> str:
    r"""Write a tabular in the style of booktabs: best in \textbf, second in \underline."""
    forms = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    titles = [_escaped(title) for title in table.titles()]
    lines = [
        f"% {table.caption()}; bold: best, underlined: second".replace("\n", " "),
        rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
    ]
    for name, entries in table.lines():
        cells = [
            forms[e.mark].format(_signed(e.value))
            + (rf" {{\scriptsize$\pm${e.spread}}}" if e.spread else "")
            for e in entries
        ]
        lines.append(" & ".join([_escaped(name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _signed(value: str) -> str:
    return f"${value}$" if value[:1] in ("+", "-") else value


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^#$%&_{}]", lambda m: _LATEX.get(m[0], "\\" + m[0]), text)


def as_csv(table: Table) -> str:
    """Write csv: one line per row and column of the table."""
    rows = list(table.rows())
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().removesuffix("\n")
