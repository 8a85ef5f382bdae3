"""The allocation over time: when each matrix lost its ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.methods.blora.bit_operations import FLOAT_BITS
from bayeslora_cli.reports.ranks.grids import ROWS
from bayeslora_cli.reports.ranks.heatmap import ABSENT
from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.reports.terminal_shading import Shading, printable
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.rank_correlation import Floats

Ints = NDArray[np.int64]
Turns = tuple[float | None, ...]
FIRST, SETTLED = "first", "settled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A number of every matrix over the steps of a history, ready to be drawn."""

    unit: str
    total: str
    """What the line above the matrices is called."""
    values: Floats
    """(t, matrices)."""
    totals: Floats
    """(t,)."""
    top: float
    """The number of the strongest colour; what is not quantized yet has it, too."""
    first: Turns
    settled: Turns


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How the ranks of a group's runs went, as means over the runs.

    Steps count from 0, as in the run's files; what is drawn counts them from 1.
    """

    group: Group
    steps: Ints
    """(t,) rising: 0, then every step at which any run's allocation changed."""
    ranks: Floats
    """(t, matrices) from that step on."""
    first_loss: tuple[float | None, ...]
    """Of each matrix, the step at which its rank first fell; None: it did in no run."""
    settled: tuple[float | None, ...]
    """Of each matrix, the step of its rank's last change; None: it never changed."""
    bits: Floats | None = None
    """(t, matrices) mean width of its operands, `FLOAT_BITS` before they are quantized; None: not
    all of the runs have quantizers."""
    first_narrower: tuple[float | None, ...] = ()
    """As `first_loss`, of the widths."""
    settled_bits: tuple[float | None, ...] = ()

    @property
    def budget(self) -> Floats:
        """(t,) triplets over all matrices."""
        return np.asarray(self.ranks.sum(axis=1))

    def at(self, steps: Ints, values: Floats | None = None) -> Floats:
        """Ranks, or other `values` (t, matrices), right after each of `steps`."""
        found = self.ranks if values is None else values
        return np.asarray(found[np.searchsorted(self.steps, steps, side="right") - 1])

    def order(self) -> list[int]:
        """Indices of the matrices as they are shown: the paper's kinds first, then by layer."""
        matrices = self.group.matrices
        kinds = list(dict.fromkeys([*ROWS, *(m.kind for m in matrices)]))
        return sorted(
            range(len(matrices)),
            key=lambda i: (matrices[i].layer is None, kinds.index(matrices[i].kind), i),
        )

    def to_json(self) -> dict[str, Any]:
        """{"steps": [t], "budget": [t], "matrices": [{"name", "ranks": [t], "first_loss",
        "settled"}]}; `first_loss` and `settled` are steps or null. Steps count from 0.

        Runs with quantizers have matrices' "bits" as well, [t] of the mean width."""
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
        """Table: a row a change and matrix; steps count from 0."""
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
        """A line a matrix, a column a step, as many steps as `width` holds; widths below ranks."""
        lines = [Text(printable(self.group.title(), unicode=unicode))]
        for course in self.courses():
            drawing = _Drawing(
                self, course, width=width, colour=colour, shades=unicode and not colour
            )
            lines += [Text(), *drawing.lines()]
        return Text("\n").join([*lines, *map(Text, _captions(self))])

    def courses(self) -> list[Course]:
        """What is drawn: the ranks, and the widths where there are any."""
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


def load_history(group: Group) -> History:
    """Read how the ranks of a group's runs went.

    Raises:
        UserError: constant ranks, runs of different lengths, or a file missing or corrupt.
    """
    runs = list(zip(group.runs, group.reports, strict=True))
    for run, report in runs:
        if report.criterion is None:
            raise UserError(
                f"--history: the ranks of {run.path} are constant, it has no criterion; leave it "
                "out"
            )
        if report.step != group.reports[0].step:
            raise UserError(
                f"--history: {group.runs[0].path} has {group.reports[0].step + 1} steps, "
                f"{run.path} {report.step + 1}; show runs of one length"
            )
    changes = [_read(run, report) for run, report in runs]
    steps = np.unique(np.concatenate([s for s, *_ in changes]))
    at = [np.searchsorted(s, steps, side="right") - 1 for s, *_ in changes]
    initial = np.array([m.init_rank for m in group.matrices], dtype=float)
    first, settled = _turns([(s, own, initial) for s, own, _ in changes])
    found = History(
        group=group,
        steps=steps,
        ranks=np.mean([own[i] for (_, own, _), i in zip(changes, at, strict=True)], axis=0),
        first_loss=first,
        settled=settled,
    )
    widths = [(s, bits) for s, _, bits in changes if bits is not None]
    if len(widths) < len(changes):
        return found
    first, settled = _turns([_quantized(s, bits) for s, bits in widths])
    bits = np.mean([own[i] for (_, own), i in zip(widths, at, strict=True)], axis=0)
    return replace(found, bits=bits, first_narrower=first, settled_bits=settled)


def _read(run: RunDir, report: RankReport) -> tuple[Ints, Floats, Floats | None]:
    """Steps (t,) and from each of them on the ranks and mean widths (t, matrices), those before
    anything changed first; no widths: nothing is quantized."""
    name = run.ranks_history
    initial = [m.init_rank for m in report.matrices]
    quantized = all(m.bits is not None for m in report.matrices)
    steps, ranks = [0], [initial]  # until the first change
    bits = [[float(FLOAT_BITS)] * len(initial)]
    for number, line in enumerate(run.read_text(name).splitlines(), start=1):
        try:
            value = json.loads(line)
            step, row = value["step"], [value["ranks"][m.name] for m in report.matrices]
            widths = [
                fmean(value["bits"][m.name].values()) if quantized else bits[0][i]
                for i, m in enumerate(report.matrices)
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunDirError(f"{name}, line {number}: corrupt: {error}") from error
        whole = all(isinstance(v, int) for v in (step, *row))
        if (
            not whole
            or not all(0 <= r <= top for r, top in zip(row, initial, strict=True))
            or not all(1 <= width <= FLOAT_BITS for width in widths)
            or not (steps[-1] < step or number == 1)
            or not 0 <= step <= report.step
        ):
            raise RunDirError(f"{name}, line {number}: corrupt: not ranks at a later step")
        # the first line repeats the initial ranks where none was lost yet
        if (row, widths) == (ranks[-1], bits[-1]):
            continue
        if step == 0:
            steps, ranks, bits = [], [], []
        steps.append(step)
        ranks.append(row)
        bits.append(widths)
    found = np.array(steps, dtype=np.int64), np.array(ranks, dtype=float)
    return *found, np.array(bits) if quantized else None


def _quantized(steps: Ints, bits: Floats) -> tuple[Ints, Floats, Floats]:
    """Steps and widths without those before anything is quantized, and the first of them."""
    there = np.flatnonzero((bits < FLOAT_BITS).all(axis=1))
    return steps[there], bits[there], bits[there[:1]].reshape(-1, bits.shape[1])


def _turns(courses: Sequence[tuple[Ints, Floats, Floats]]) -> tuple[Turns, Turns]:
    """Of each matrix the step at which its number first fell, and that of its last change.

    Args:
        courses: of each run the steps (t,), the numbers (t, matrices) and what was before.
    """
    first, last = [], []
    for steps, own, initial in courses:
        before = np.vstack([initial, own[:-1]])
        first.append(_when(steps, own < before, last=False))
        last.append(_when(steps, own != before, last=True))
    return _means(first), _means(last)


def _when(steps: Ints, happens: NDArray[np.bool_], *, last: bool) -> Floats:
    """(matrices,): the first or last step at which it happens; nan: never."""
    order = slice(None, None, -1 if last else 1)
    where = np.argmax(happens[order], axis=0)
    return np.where(happens.any(axis=0), steps[order][where], np.nan)


def _means(steps: list[Floats]) -> tuple[float | None, ...]:
    """Means over the runs in which it happened."""
    columns = (column[~np.isnan(column)] for column in np.array(steps).T)
    return tuple(float(column.mean()) if column.size else None for column in columns)


def _shown(step: float) -> str:
    """A step on the screen, where the first is 1."""
    return f"{step + 1:.0f}"


class _Drawing:
    """A history's course with the measures of its drawing."""

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
        """The line of the i-th matrix."""
        line = Text(f"{self.names[i]:{self.name}}")
        for value in self.values[:, i].tolist():
            shade = min(value, self.course.top)
            text = f"{self.number(value):>{1 + self.digits}}{self.shading.mark(shade)}"
            line.append(f"{text:{self.cell}}", self.shading.style(shade))
        for step in (self.course.first[i], self.course.settled[i]):
            line.append(f"{ABSENT if step is None else _shown(step):>{self.ends}}")
        return line

    def plain(self, name: str, cells: list[str], first: str, settled: str, style: str) -> Text:
        """A line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        ends = f"{first:>{self.ends}}{settled:>{self.ends}}"
        return Text(f"{name:{self.name}}" + "".join(padded) + ends, style)


def _captions(history: History) -> tuple[str, ...]:
    """The lines at the end."""
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
