"""Expands comma lists and ranges into runs, each resolved as if it had been typed on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.resolution import Resolved, resolve
from bayeslora_cli.config.run_config import METHOD_ROW, OPTIONS, RunConfig, flag
from bayeslora_cli.config.validation import unknown
from bayeslora_cli.errors import ConfigError, UserError
from bayeslora_cli.reports.terminal_text import shell_line
from bayeslora_cli.runs.directory import RunDir, run_name, runs_elsewhere

# options that take a list; the first varies slowest
AXES = tuple(
    sorted((name for name, o in OPTIONS.items() if o.sweep), key=lambda name: OPTIONS[name].varies)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    typed: Mapping[str, Any]
    """Option values that the user would type to train only this run, by field name."""
    preset: str | None
    """The value of `--preset`; None: not given."""
    resolved: Resolved
    place: Path | None = None
    """The directory of the same run with its model or data at other places, if there is one."""

    @property
    def run(self) -> RunDir:
        """The run's directory."""
        name = run_name(self.resolved)
        return RunDir(self.place or Path(self.resolved.config.output) / name)

    @property
    def label(self) -> str:
        """The run's name in messages: the directory's last two parts."""
        return "/".join(self.run.path.parts[-2:])

    def is_done(self) -> bool:
        """Return whether the directory holds the finished run, as far as is known without data."""
        if self.resolved.config.overwrite or not self.run.finished:
            return False
        try:
            run = self.run
            theirs = _final(run.read_config())
            run.verify()
        except UserError:
            return False  # the training reports the problem
        return _final(self.resolved.config) == theirs

    def may_have_moved(self) -> bool:
        """Return whether a run may be this one at other places, as far as is known without data."""
        config = self.resolved.config
        return not config.overwrite and any(runs_elsewhere(self.run, _final(config)))

    def arguments(self) -> list[str]:
        """Return the arguments of `bayeslora` that train only this run."""
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
        """Return the command line for a shell."""
        return shell_line(["bayeslora", *self.arguments()])


def _final(config: RunConfig) -> dict[str, Any]:
    """Return the values that decide the result and that are known before data are read."""
    return {n: v for n, v in affecting(config).items() if OPTIONS[n].is_final}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One run or more, each with its own directory."""

    runs: tuple[PlannedRun, ...]
    notices: tuple[str, ...]
    """One sentence for each combination left out, with the reason, or option without effect."""


def expand(typed: Mapping[str, Any], preset: str | None = None) -> Sweep:
    """Make one run for every combination of the typed lists; without a list, one run.

    An invalid combination is left out with a notice, unless no valid one remains. A method that
    allocates no ranks is trained once, not once per criterion.

    Args:
        typed: values as for `resolve`; an option that takes a list may be text, which the option's
            `sweep` reads.
    Raises:
        ConfigError: a list cannot be read, or no combination is valid; then all problems.
    """
    axes = _axes(typed)
    runs: dict[Path, PlannedRun] = {}
    problems: dict[str, list[dict[str, Any]]] = {}
    once: dict[str, None] = {}
    idle: dict[str, None] = {}
    several_rows = any(len(axes.get(n, ())) > 1 for n in METHOD_ROW)
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
    if len(runs) == 1:  # the training prints the options without effect
        return Sweep(runs=tuple(runs.values()), notices=notices)
    quiet = (replace(run, resolved=replace(run.resolved, notices=())) for run in runs.values())
    return Sweep(runs=tuple(quiet), notices=(*notices, *idle))


def _planned(
    typed: Mapping[str, Any], preset: str | None, several_rows: bool
) -> tuple[PlannedRun, tuple[str, ...]]:
    """Return the run of a combination, and notices about it.

    Args:
        several_rows: whether the sweep has several methods, optimizers or criteria.
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
    """Write the notice of combinations with the same problem, named by the options they share."""
    common = [
        f"{flag(name)} {points[0][name]}"
        for name in axes
        if name != "seed" and len({point[name] for point in points}) == 1
    ]
    count = f"{len(points)} run{'s' if len(points) > 1 else ''}"
    return f"left out {' '.join([*common, f'({count})'])}: {'; '.join(error.splitlines())}"


# ---- lists


def _axes(typed: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the values of each option that was typed and takes a list.

    Raises:
        ConfigError: lists cannot be read; the message names all of them.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    problems: list[str] = []
    for name in AXES:
        if name not in typed:
            continue
        text, option = str(typed[name]), OPTIONS[name]
        assert option.sweep is not None
        try:
            axes[name] = option.sweep(text)
        except ValueError as error:
            problems.append(f"{option.sweep_flag or option.flag} {text}: {error}")
            continue
        # a single wrong value is reported by `resolve`, together with all other problems
        if len(axes[name]) > 1 and option.choices is not None:
            problems += [unknown(option, v) for v in axes[name] if v not in option.choices]
    if problems:
        raise ConfigError(problems)
    return axes
