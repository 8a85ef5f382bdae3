"""`History`: the ranks and bit widths over the steps, as data and as a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bayeslora_cli.reports.ranks.grids import paper_order
from bayeslora_cli.reports.ranks.heatmap import ABSENT
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.reports.terminal_shading import Shading
from bayeslora_cli.reports.terminal_text import printable
from bayeslora_cli.runs.rank_report import FLOAT_BITS
from bayeslora_cli.tasks.rank_correlation import Floats

Ints = NDArray[np.int64]
Turns = tuple[float | None, ...]
"""For each matrix, the step of an event: its mean over the runs that have it; None: no run has."""
FIRST, SETTLED = "first", "settled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """The rank, or the bit width, of every matrix over the steps of a history."""

    unit: str
    total: str
    """Name of the line above the matrices."""
    values: Floats
    """(t, matrices): the numbers from each step on."""
    totals: Floats
    """(t,): the numbers of the line above the matrices."""
    top: float
    """The number that has the strongest colour; unquantized matrices have it, too."""
    first: Turns
    """For each matrix, the step at which its number first fell."""
    settled: Turns
    """For each matrix, the step of its number's last change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The ranks of a group's runs over the steps, as means over the runs.

    Steps count from 0, as in the run's files; drawings count them from 1.
    """

    group: Group
    steps: Ints
    """(t,) rising: 0, then every step at which any run's allocation changed."""
    ranks: Floats
    """(t, matrices): mean ranks from each step on."""
    first_loss: Turns
    """For each matrix, the step at which its rank first fell; None: it fell in no run."""
    settled: Turns
    """For each matrix, the step of its rank's last change; None: it never changed."""
    bits: Floats | None = None
    """(t, matrices): mean bit width of the operands, `FLOAT_BITS` before they are quantized; None:
    not all of the runs have quantizers."""
    first_narrower: Turns = ()
    """Like `first_loss`, for the bit widths."""
    settled_bits: Turns = ()
    """Like `settled`, for the bit widths."""

    @property
    def budget(self) -> Floats:
        """Triplets over all matrices, from each step on: (t,)."""
        return np.asarray(self.ranks.sum(axis=1))

    def at(self, steps: Ints, values: Floats | None = None) -> Floats:
        """Return the ranks, or other `values` (t, matrices), right after `steps`.

        The result is (steps, matrices).
        """
        found = self.ranks if values is None else values
        return np.asarray(found[np.searchsorted(self.steps, steps, side="right") - 1])

    def order(self) -> list[int]:
        """Return the indices of the matrices in drawing order: the paper's kinds first."""
        matrices = self.group.matrices
        kinds = paper_order(m.kind for m in matrices)
        return sorted(
            range(len(matrices)),
            key=lambda i: (matrices[i].layer is None, kinds.index(matrices[i].kind), i),
        )

    def __repr__(self) -> str:
        return str(self.draw(width=100, colour=False, unicode=True))

    def to_json(self) -> dict[str, Any]:
        """Return {"steps": [t], "budget": [t], "matrices": [{"name", "ranks": [t], "first_loss",
        "settled"}]}; `first_loss` and `settled` are steps or null. Steps count from 0.

        For runs with quantizers, each matrix has "bits" as well: [t], its mean bit width."""
        return {
            "steps": self.steps.tolist(),
            "budget": self.budget.tolist(),
            "matrices": [
                {
                    "name": matrix.name,
                    "ranks": self.ranks[:, i].tolist(),
                    "first_loss": self.first_loss[i],
                    "settled": self.settled[i],
                    **({} if self.bits is None else {"bits": self.bits[:, i].tolist()}),
                }
                for i, matrix in enumerate(self.group.matrices)
            ],
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per change and matrix; steps count from 0."""
        for t, (step, ranks, budget) in enumerate(
            zip(self.steps.tolist(), self.ranks.tolist(), self.budget.tolist(), strict=True)
        ):
            for i, (matrix, rank) in enumerate(zip(self.group.matrices, ranks, strict=True)):
                yield {
                    "label": self.group.label,
                    "step": step,
                    "budget": budget,
                    "name": matrix.name,
                    "kind": matrix.kind,
                    "layer": matrix.layer,
                    "rank": rank,
                    **({} if self.bits is None else {"bits": float(self.bits[t, i])}),
                }

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """Draw one line per matrix, and columns for as many steps as fit; bit widths come below."""
        lines = [Text(printable(self.group.title(), unicode=unicode))]
        for course in self.courses():
            drawing = _Drawing(
                self, course, width=width, colour=colour, shades=unicode and not colour
            )
            lines += [Text(), *drawing.lines()]
        return Text("\n").join([*lines, *map(Text, _captions(self))])

    def courses(self) -> list[Course]:
        """Return the ranks, and the bit widths if there are any."""
        ranks = Course(
            unit="rank", total="budget", values=self.ranks, totals=self.budget,
            top=float(self.ranks.max()), first=self.first_loss, settled=self.settled,
        )  # fmt: skip
        if self.bits is None:
            return [ranks]
        bits = Course(
            unit="bits", total="mean", values=self.bits, totals=self.bits.mean(axis=1),
            top=float(self.bits[self.bits < FLOAT_BITS].max(initial=0)) or FLOAT_BITS,
            first=self.first_narrower, settled=self.settled_bits,
        )  # fmt: skip
        return [ranks, bits]


def _shown(step: float) -> str:
    """Write a step as drawings count it: the first is 1."""
    return f"{step + 1:.0f}"


class _Drawing:
    """Draws one course; it knows its sizes in columns and draws its lines."""

    def __init__(
        self, history: History, course: Course, *, width: int, colour: bool, shades: bool
    ) -> None:
        self.history, self.course = history, course
        self.bold, self.dim = ("bold", "dim") if colour else ("", "")
        self.shading = Shading(top=course.top, colour=colour, characters=shades)
        self.decimals = 0 if all(v.is_integer() for v in course.values.flat) else 1

        matrices = history.group.matrices
        kind = max(len(m.kind) for m in matrices)
        layers = ["" if m.layer is None else str(m.layer) for m in matrices]
        layer = 1 + max(map(len, layers))
        self.names = [f"{m.kind:{kind}}{n:>{layer}}" for m, n in zip(matrices, layers, strict=True)]
        self.name = 1 + max(map(len, ("budget", *self.names)))
        most = max(course.totals.max(), course.values.max())
        numbers = [_shown(history.steps[-1]), self.number(most)]
        self.digits = max(map(len, numbers))
        self.cell = 1 + self.digits + shades
        self.ends = 1 + max(len(FIRST), len(SETTLED), self.digits)
        room = width - self.name - 2 * self.ends
        start, end = max(0, int(history.steps[1:2].sum()) - 1), int(history.steps[-1])
        count = max(2, room // self.cell)
        self.steps = np.unique(np.linspace(start, end, count).round().astype(np.int64))
        self.values = history.at(self.steps, course.values)
        self.totals = history.at(self.steps, course.totals)

    def number(self, value: float) -> str:
        return f"{value:.{self.decimals}f}"

    def lines(self) -> list[Text]:
        history, course = self.history, self.course
        totals = list(map(self.number, self.totals))
        lines = [
            self.plain("step", [_shown(s) for s in self.steps], FIRST, SETTLED, self.dim),
            self.plain(course.total, totals, "", "", self.bold),
        ]
        kind = None
        for i in history.order():
            if history.group.matrices[i].kind != kind:
                kind = history.group.matrices[i].kind
                lines.append(Text())
            lines.append(self.matrix(i))
        lines.append(Text())
        if legend := self.shading.legend(self.number):
            lines.append(Text(f"{course.unit:{self.name}} ").append_text(legend))
        for line in lines:
            if not self.shading.colour:
                line.rstrip()
        return lines

    def matrix(self, i: int) -> Text:
        """Draw the line of the i-th matrix."""
        line = Text(f"{self.names[i]:{self.name}}")
        for value in self.values[:, i].tolist():
            shade = min(value, self.course.top)
            text = f"{self.number(value):>{1 + self.digits}}{self.shading.mark(shade)}"
            line.append(f"{text:{self.cell}}", self.shading.style(shade))
        for step in (self.course.first[i], self.course.settled[i]):
            line.append(f"{ABSENT if step is None else _shown(step):>{self.ends}}")
        return line

    def plain(self, name: str, cells: list[str], first: str, settled: str, style: str) -> Text:
        """Draw a line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        ends = f"{first:>{self.ends}}{settled:>{self.ends}}"
        return Text(f"{name:{self.name}}" + "".join(padded) + ends, style)


def _captions(history: History) -> tuple[str, ...]:
    """Write the lines below the drawing."""
    steps, group, budget = history.steps, history.group, history.budget
    number = f"{budget[-1]:.{0 if (history.ranks % 1 == 0).all() else 1}f}"
    kept = f"{number} of {group.initial} triplets kept"
    if len(steps) == 1:
        return (f"{kept}; no rank ever changes",)
    loss = "the first loss" if history.bits is None else "the first loss or narrower width"
    return (
        f"{FIRST}: step of {loss}; {SETTLED}: step of the last change",
        f"{kept}; no change before step {_shown(steps[1])} nor after step {_shown(steps[-1])} "
        f"of {group.reports[0].step + 1}",
    )
