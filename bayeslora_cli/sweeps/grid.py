"""What was typed of several runs at once -> the runs, each resolved as if typed alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import (
    BLORA_MODES,
    CRITERIA,
    METHODS,
    OPTIMIZERS,
    TASK_NAMES,
)
from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.resolution import SCHEDULED, Resolved, resolve, run_name
from bayeslora_cli.config.run_config import flag, nearest
from bayeslora_cli.config.values import parse_names, parse_numbers, parse_reals
from bayeslora_cli.errors import ConfigError, UserError
from bayeslora_cli.runs.directory import RunDir

# the options that take a list; the first varies slowest
NAMES: dict[str, tuple[str, ...]] = {
    "task": TASK_NAMES,
    "method": tuple(METHODS),
    "optimizer": tuple(OPTIMIZERS),
    "criterion": tuple(CRITERIA),
    "blora_mode": BLORA_MODES,
}
REALS = ("lr", "boost_lr", "lambda_quant", "lambda_rank")
AXES = ("task", "target_rank", "method", "optimizer", "criterion", "blora_mode", *REALS, "seed")
# fields whose final value depends on the data and the backbone
_FITTED = {*SCHEDULED, "schedule_steps", "max_length"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    typed: Mapping[str, Any]
    """What would be typed for it alone, by field name."""
    preset: str | None
    """`--preset`."""
    resolved: Resolved

    @property
    def run(self) -> RunDir:
        """Its directory."""
        return RunDir(Path(self.resolved.config.output) / run_name(self.resolved))

    @property
    def label(self) -> str:
        """What it is called beside the others: the directory's last two parts."""
        return "/".join(self.run.path.parts[-2:])

    def is_done(self) -> bool:
        """Whether its directory holds the finished run, as far as can be told without the data."""
        if self.resolved.config.overwrite or not self.run.finished:
            return False
        try:
            there = self.run.read_config()
        except UserError:
            return False  # the ordinary run says what is wrong
        mine, theirs = (
            {name: value for name, value in affecting(config).items() if name not in _FITTED}
            for config in (self.resolved.config, there)
        )
        return mine == theirs

    def arguments(self) -> list[str]:
        """The arguments of `bayeslora` that train this run, and no other."""
        found = ["train"]
        if self.preset is not None:
            found += ["--preset", self.preset]
        for name, value in self.typed.items():
            if isinstance(value, bool):
                found += [flag(name)] * value
            else:
                found += [flag(name), ",".join(value) if isinstance(value, tuple) else str(value)]
        return found

    def command(self) -> str:
        """The command line, for a shell."""
        return shlex.join(["bayeslora", *self.arguments()])


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Runs, one or more, no two with the same directory."""

    runs: tuple[PlannedRun, ...]
    notices: tuple[str, ...]
    """What was left out and why, and options without effect, a sentence each."""


def expand(typed: Mapping[str, Any], preset: str | None = None) -> Sweep:
    """Every combination of what was typed as a list; one run where nothing was.

    A combination that cannot be is left out with a notice, unless that leaves nothing. A method
    that allocates no ranks is trained once beside others, not once a criterion.

    Args:
        typed: as for `resolve`; those of `NAMES` and `REALS` may be comma lists, and `target_rank`
            and `seed` are lists and ranges as text: 2021-2025, 1,5,7-9.
    Raises:
        ConfigError: a list that cannot be read, or all problems of the combinations if none of
            them can be.
    """
    axes = _axes(typed)
    runs: dict[Path, PlannedRun] = {}
    problems: dict[str, list[dict[str, Any]]] = {}
    once: dict[str, None] = {}
    idle: dict[str, None] = {}
    several_rows = any(len(axes.get(n, ())) > 1 for n in ("method", "optimizer", "criterion"))
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        try:
            planned, said = _planned({**typed, **point}, preset, several_rows)
        except ConfigError as error:
            problems.setdefault(str(error), []).append(point)
            continue
        once |= dict.fromkeys(said)
        idle |= dict.fromkeys(planned.resolved.notices)
        runs.setdefault(planned.run.path, planned)
    if not runs:
        raise ConfigError(list(dict.fromkeys(line for e in problems for line in e.splitlines())))
    notices = (*(_left_out(error, points, axes) for error, points in problems.items()), *once)
    if len(runs) == 1:  # which says itself what is idle
        return Sweep(runs=tuple(runs.values()), notices=notices)
    quiet = (replace(run, resolved=replace(run.resolved, notices=())) for run in runs.values())
    return Sweep(runs=tuple(quiet), notices=(*notices, *idle))


def _planned(
    typed: Mapping[str, Any], preset: str | None, several_rows: bool
) -> tuple[PlannedRun, tuple[str, ...]]:
    """A combination's run, and what to say about it.

    Args:
        several_rows: whether it is one of several methods, optimizers or criteria.
    """
    try:
        return PlannedRun(typed=typed, preset=preset, resolved=resolve(typed, preset)), ()
    except ConfigError:
        if not several_rows:
            raise
        bare = {name: value for name, value in typed.items() if name != "criterion"}
        try:
            found = PlannedRun(typed=bare, preset=preset, resolved=resolve(bare, preset))
        except ConfigError:
            found = None
        if found is None or found.resolved.config.criterion is not None:
            raise
    method = found.resolved.config.method
    return found, (f"--method {method} allocates no ranks: it is trained without --criterion",)


def _left_out(error: str, points: Sequence[Mapping[str, Any]], axes: Mapping[str, Any]) -> str:
    """The notice of the combinations that share a problem: what they have in common names them."""
    common = [
        f"{flag(name)} {points[0][name]}"
        for name in axes
        if name != "seed" and len({point[name] for point in points}) == 1
    ]
    count = f"{len(points)} run{'s' if len(points) > 1 else ''}"
    return f"left out {' '.join([*common, f'({count})'])}: {'; '.join(error.splitlines())}"


# ---- lists


def _axes(typed: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The values of each option that was typed and takes a list.

    Raises:
        ConfigError: all of what cannot be read.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for name in AXES:
        if name not in typed:
            continue
        text = str(typed[name])
        try:
            axes[name] = _parser(name)(text)
        except ValueError as error:
            option = "--seeds" if name == "seed" else flag(name)
            problems.append(f"{option} {text}: {error}")
            continue
        known: tuple[Any, ...] = NAMES.get(name, axes[name])
        if len(axes[name]) > 1:  # else the run itself says it, together with what else is wrong
            problems += [
                f"{flag(name)} {value}: choose one of {', '.join(known)}{nearest(value, known)}"
                for value in axes[name]
                if value not in known
            ]
    if problems:
        raise ConfigError(problems)
    return axes


def _parser(name: str) -> Callable[[str], tuple[Any, ...]]:
    if name in NAMES:
        return parse_names
    return parse_reals if name in REALS else parse_numbers
