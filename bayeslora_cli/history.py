"""The allocation over time: when each matrix lost its ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from bayeslora_cli.allocations import Group
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.heatmap import ABSENT, ROWS
from bayeslora_cli.rank_correlation import Floats
from bayeslora_cli.report import RankReport
from bayeslora_cli.rundir import RunDir
from bayeslora_cli.shades import Shading, printable

Ints = NDArray[np.int64]
FIRST, SETTLED = "first", "settled"


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

    @property
    def budget(self) -> Floats:
        """(t,) triplets over all matrices."""
        return np.asarray(self.ranks.sum(axis=1))

    def at(self, steps: Ints) -> Floats:
        """Ranks right after each of `steps`: (steps, matrices)."""
        return np.asarray(self.ranks[np.searchsorted(self.steps, steps, side="right") - 1])

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
        "settled"}]}; `first_loss` and `settled` are steps or null. Steps count from 0."""
        return {
            "steps": self.steps.tolist(),
            "budget": self.budget.tolist(),
            "matrices": [
                {
                    "name": matrix.name,
                    "ranks": self.ranks[:, i].tolist(),
                    "first_loss": self.first_loss[i],
                    "settled": self.settled[i],
                }
                for i, matrix in enumerate(self.group.matrices)
            ],
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Table: a row a change and matrix; steps count from 0."""
        for step, ranks, budget in zip(
            self.steps.tolist(), self.ranks.tolist(), self.budget.tolist(), strict=True
        ):
            for matrix, rank in zip(self.group.matrices, ranks, strict=True):
                yield {
                    "label": self.group.label,
                    "step": step,
                    "budget": budget,
                    "name": matrix.name,
                    "kind": matrix.kind,
                    "layer": matrix.layer,
                    "rank": rank,
                }

    def draw(self, *, width: int, colour: bool, unicode: bool) -> Text:
        """A line a matrix, a column a step, as many steps as `width` holds."""
        drawing = _Drawing(self, width=width, colour=colour, shades=unicode and not colour)
        title = Text(printable(self.group.title(), unicode=unicode))
        return Text("\n").join([title, Text(), *drawing.lines()])


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
    steps = np.unique(np.concatenate([s for s, _ in changes]))
    ranks = np.mean([r[np.searchsorted(s, steps, side="right") - 1] for s, r in changes], axis=0)
    initial = np.array([m.init_rank for m in group.matrices])
    first, last = [], []
    for own_steps, own in changes:
        before = np.vstack([initial, own[:-1]])
        first.append(_when(own_steps, own < before, last=False))
        last.append(_when(own_steps, own != before, last=True))
    return History(
        group=group, steps=steps, ranks=ranks, first_loss=_means(first), settled=_means(last)
    )


def _read(run: RunDir, report: RankReport) -> tuple[Ints, Floats]:
    """Steps (t,) and the ranks (t, matrices) from each of them on, the initial ones first."""
    name = run.ranks_history
    initial = [m.init_rank for m in report.matrices]
    steps, ranks = [0], [initial]  # until the first change
    for number, line in enumerate(run.read_text(name).splitlines(), start=1):
        try:
            value = json.loads(line)
            step, row = value["step"], [value["ranks"][m.name] for m in report.matrices]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunDirError(f"{name}, line {number}: corrupt: {error}") from error
        whole = all(isinstance(v, int) for v in (step, *row))
        if (
            not whole
            or not all(0 <= r <= top for r, top in zip(row, initial, strict=True))
            or not (steps[-1] < step or number == 1)
            or not 0 <= step <= report.step
        ):
            raise RunDirError(f"{name}, line {number}: corrupt: not ranks at a later step")
        if row == ranks[-1]:  # the first line repeats the initial ranks where none was lost yet
            continue
        if step == 0:
            steps, ranks = [], []
        steps.append(step)
        ranks.append(row)
    return np.array(steps, dtype=np.int64), np.array(ranks, dtype=float)


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
    """A history with the measures of its drawing."""

    def __init__(self, history: History, *, width: int, colour: bool, shades: bool) -> None:
        self.history = history
        self.bold, self.dim = ("bold", "dim") if colour else ("", "")
        top = float(history.ranks.max())
        self.shading = Shading(top=top, colour=colour, characters=shades)
        self.decimals = 0 if all(v.is_integer() for v in history.ranks.flat) else 1

        matrices = history.group.matrices
        kind = max(len(m.kind) for m in matrices)
        layers = ["" if m.layer is None else str(m.layer) for m in matrices]
        layer = 1 + max(map(len, layers))
        self.names = [f"{m.kind:{kind}}{n:>{layer}}" for m, n in zip(matrices, layers, strict=True)]
        self.name = 1 + max(map(len, ("budget", *self.names)))
        numbers = [_shown(history.steps[-1]), self.number(history.budget.max()), self.number(top)]
        self.digits = max(map(len, numbers))
        self.cell = 1 + self.digits + shades
        self.ends = 1 + max(len(FIRST), len(SETTLED), self.digits)
        room = width - self.name - 2 * self.ends
        start, end = max(0, int(history.steps[1:2].sum()) - 1), int(history.steps[-1])
        count = max(2, room // self.cell)
        self.steps = np.unique(np.linspace(start, end, count).round().astype(np.int64))
        self.ranks = history.at(self.steps)

    def number(self, value: float) -> str:
        return f"{value:.{self.decimals}f}"

    def lines(self) -> list[Text]:
        history = self.history
        lines = [
            self.plain("step", [_shown(s) for s in self.steps], FIRST, SETTLED, self.dim),
            self.plain("budget", list(map(self.number, self.ranks.sum(axis=1))), "", "", self.bold),
        ]
        kind = None
        for i in history.order():
            if history.group.matrices[i].kind != kind:
                kind = history.group.matrices[i].kind
                lines.append(Text())
            lines.append(self.matrix(i))
        legend = self.shading.legend(self.number)
        lines.append(Text())
        if legend:
            lines.append(Text(f"{'rank':{self.name}} ").append_text(legend))
        lines += map(Text, self.captions())
        for line in lines:
            if not self.shading.colour:
                line.rstrip()
        return lines

    def captions(self) -> tuple[str, ...]:
        """The lines at the end."""
        steps, group = self.history.steps, self.history.group
        kept = f"{self.number(self.history.budget[-1])} of {group.initial} triplets kept"
        if len(steps) == 1:
            return (f"{kept}; no rank ever changes",)
        return (
            f"{FIRST}: step of the first loss; {SETTLED}: step of the last change",
            f"{kept}; no change before step {_shown(steps[1])} nor after step {_shown(steps[-1])} "
            f"of {group.reports[0].step + 1}",
        )

    def matrix(self, i: int) -> Text:
        """The line of the i-th matrix."""
        line = Text(f"{self.names[i]:{self.name}}")
        for value in self.ranks[:, i].tolist():
            text = f"{self.number(value):>{1 + self.digits}}{self.shading.mark(value)}"
            line.append(f"{text:{self.cell}}", self.shading.style(value))
        for step in (self.history.first_loss[i], self.history.settled[i]):
            line.append(f"{ABSENT if step is None else _shown(step):>{self.ends}}")
        return line

    def plain(self, name: str, cells: list[str], first: str, settled: str, style: str) -> Text:
        """A line of unshaded cells."""
        padded = (f"{f'{cell:>{1 + self.digits}}':{self.cell}}" for cell in cells)
        ends = f"{first:>{self.ends}}{settled:>{self.ends}}"
        return Text(f"{name:{self.name}}" + "".join(padded) + ends, style)
