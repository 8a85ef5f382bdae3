"""Resolves presets and typed options to a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OBJECTIVES, OPTIMIZERS, criteria_of
from bayeslora_cli.config.effects import check_schedule, without_effect
from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.files.presets import preset_chain, row_values, task_chain, top_level
from bayeslora_cli.config.files.start_sources import model_of
from bayeslora_cli.config.run_config import OPTIONS, SCHEDULED, RunConfig, flag
from bayeslora_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: RunConfig
    sources: Mapping[str, str]
    """Field name -> default, preset NAME or command line."""
    changed: Mapping[str, Any]
    """Values that affect the result and differ from the task's own preset."""
    notices: tuple[str, ...] = ()
    """One sentence for each typed option that has no effect or takes the place of another."""


def resolve(typed: Mapping[str, Any], preset: str | None = None) -> Resolved:
    """Combine defaults, the task's own preset, the requested preset and the typed values.

    Later values override earlier ones. A preset that extends another overrides only that one; any
    other preset overrides the task's own.

    Args:
        typed: field name -> value, only what the user gave.
        preset: name or file of a preset.
    Raises:
        ConfigError: the values are invalid; the message lists all problems.
    """
    typed = _checked_paths(typed)
    chain = [] if preset is None else preset_chain(preset)
    asked = len(chain)
    task = _task(typed, _top(chain))
    own = task_chain(_own_preset(task, _top(chain) | typed))
    if chain and chain[:1] != own[:1] and "extends" not in chain[-1][1]:
        chain = own + chain
    chain = chain or own

    method, optimizer, criterion = _method(_top(chain) | typed)
    row: dict[str, Any] = {
        "task": task, "method": method, "optimizer": optimizer, "criterion": criterion,
    }  # fmt: skip
    layers = [(name, row_values(table, method, optimizer, criterion)) for name, table in chain]
    from_presets = _checked_paths(_merged([found for _, found in layers]))
    replaced: tuple[str, ...] = ()
    if typed.get("epochs") is not None and "max_steps" not in typed:
        replaced = _drop_max_steps(from_presets, layers)
    idle = without_effect(method, optimizer, from_presets | row | typed)
    notices = tuple(f"{flag(n)} has no effect with {idle[n]}" for n in typed if n in idle)
    notices += replaced
    if preset is not None and not any(found for _, found in layers[len(layers) - asked :]):
        combination = "-".join(p for p in (method, optimizer, criterion) if p)
        notices += (f"--preset {preset} has no effect: it says nothing of {combination}",)
    typed = {name: value for name, value in typed.items() if name not in idle}

    start = (from_presets | typed).get("start_from")
    if start is not None and (model := model_of(start, typed.get("model"))) is not None:
        from_presets["model"] = model
    values = from_presets | typed | row
    row |= _ranks(method, values)
    if "target_rank" in row:
        values["target_rank"] = row["target_rank"]
    # absolute, though it need not exist yet: a run that begins anew has the same config.toml
    values["output"] = str(_absolute("output", values.get("output", OPTIONS["output"].default)))
    config = RunConfig(**row | values)
    sources = dict.fromkeys(OPTIONS, "default")
    for name, found in layers:
        sources |= dict.fromkeys(found.keys() & from_presets.keys(), f"preset {name}")
    sources |= dict.fromkeys(typed, "command line")

    untyped: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()} | row
    untyped |= _merged([row_values(table, method, optimizer, criterion) for _, table in own])
    # a typed step number does not scale, an equal one of the preset does
    fixed = typed.keys() & from_presets.keys() & set(SCHEDULED)
    changed = {
        name: getattr(config, name)
        for name, option in OPTIONS.items()
        if option.affects_result and (name in fixed or getattr(config, name) != untyped[name])
    }
    return Resolved(config=config, sources=sources, changed=changed, notices=notices)


def _method(top: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Return method, optimizer and criterion, by default those that go together."""
    method = top.get("method", OPTIONS["method"].default)
    entry = METHODS.get(method)
    usual = OPTIONS["optimizer"].default if entry is None else entry.default_optimizer
    optimizer = top.get("optimizer", usual)
    known = entry is not None and optimizer in OPTIMIZERS
    allowed = criteria_of(method, optimizer) if known else ()
    return method, optimizer, top.get("criterion", allowed[0] if allowed else None)


def _ranks(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the initial rank that a target rank implies; of a method that finds its ranks from the
    initial one on, both."""
    entry = METHODS.get(method)
    if entry is not None and entry.free_rank is not None:
        rank = values.get("init_rank", entry.free_rank)
        return {"init_rank": rank, "target_rank": rank}
    target = values.get("target_rank", OPTIONS["target_rank"].default)
    return {"init_rank": target if entry is None else entry.initial_rank(target)}


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge layers of values; later layers override earlier ones.

    Step numbers belong to their own layer's `schedule_steps` (or, without it, `max_steps`): a
    layer with another total scales those that it inherits.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        total = layer.get("schedule_steps")
        if total is None and layer.keys() & set(SCHEDULED):
            total = layer.get("max_steps")
        before = merged.get("schedule_steps")
        if total is not None and before not in (None, total):
            for name in merged.keys() & set(SCHEDULED):
                merged[name] = _scaled(name, merged[name], total, before)
        merged |= layer
        if total is not None:
            merged["schedule_steps"] = total
    return merged


def _drop_max_steps(
    values: dict[str, Any], layers: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[str, ...]:
    """Take the presets' number of steps out of their values, for --epochs was typed; say so."""
    steps = values.pop("max_steps", None)
    if steps is None:
        return ()
    name = next(name for name, found in reversed(layers) if "max_steps" in found)
    return (f"--epochs takes the place of --max-steps {steps} of --preset {name}",)


def _scaled(name: str, value: int, total: int, planned: int) -> int:
    return max(min(value, OPTIONS[name].scales or 0), value * total // planned)


def _top(chain: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return {name: value for _, table in chain for name, value in top_level(table).items()}


def _task(typed: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """Return the named task, or `custom` for a user's own files, whatever the preset's task is.

    Raises:
        ConfigError: neither was given, or both were typed.
    """
    task, file = typed.get("task"), typed.get("train_file")
    if file is not None and task not in (None, "custom"):
        raise ConfigError(
            [f"--train-file {file}: not together with --task {task}, which has examples of its "
             f"own; --preset {task} takes only its settings"]
        )  # fmt: skip
    if task is None:
        task = "custom" if file is not None else preset.get("task")
    if task is None and "train_file" in preset:
        task = "custom"
    if task is None:
        raise ConfigError(
            [
                "--task: name a task, or give --train-file with examples of your own, or a "
                "--preset that names a task"
            ]
        )
    return str(task)


def _own_preset(task: str, values: Mapping[str, Any]) -> str:
    """Return the name of the preset for a task, or for the kind of a user's file."""
    file, kind = values.get("train_file"), values.get("task_type")
    named = values.get("text_columns"), values.get("label_column")
    if task == "custom" and kind is None and file is not None and named == (None, None):
        kind = kind_of(file)
    return task if task != "custom" or kind not in OBJECTIVES else OBJECTIVES[kind].preset or task


def _checked_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values, with absolute paths of directories and files, and reals as floats.

    Raises:
        ConfigError: there is no such data directory, or a path cannot exist.
    """
    found = dict(given)
    data = given.get("data")
    if data is not None and not (path := _absolute("data", data)).is_dir():
        what = "is no directory" if path.exists() else "no such directory"
        layouts = "docs/training.md (GLUE) and docs/choices.md list the layouts"
        raise ConfigError([f"--data {data}: {what}; {layouts}"])
    for key, value in given.items():
        option = OPTIONS[key]
        if option.path and value is not None and (path := _absolute(key, value)).exists():
            found[key] = str(path)
        if isinstance(value, int) and option.type.startswith("float"):
            found[key] = float(value)
    return found


def _absolute(name: str, value: str) -> Path:
    """Return an option's path from the file system's root, without links; it need not exist.

    Raises:
        ConfigError: it has a NUL character, a name that is too long, an unknown user's home or a
            link to itself, or the current directory was deleted.
    """
    try:
        path = Path(value).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        problem = f"{flag(name)} {value[:80]}: {what}; give a path that can exist"
        raise ConfigError([problem]) from error
    return path


def scale_schedule(resolved: Resolved, total: int) -> tuple[RunConfig, str | None]:
    """Fit a preset's step numbers to a run of `total` steps; typed numbers stay as they are.

    Returns:
        The configuration with its final numbers, and a notice if any of them changed.
    Raises:
        ConfigError: the numbers do not fit into the run.
    """
    config = resolved.config
    planned = config.schedule_steps or total
    values: dict[str, Any] = {}
    for name in SCHEDULED:
        value = getattr(config, name)
        if value is None or resolved.sources[name] == "command line" or planned == total:
            continue
        values[name] = _scaled(name, value, total, planned)
    if config.warmup_ratio is not None:
        values["warmup_steps"] = min(round(config.warmup_ratio * total), total - 1)
    idle = without_effect(config.method, config.optimizer, asdict(config))
    changed = {n: v for n, v in values.items() if v != getattr(config, n) and n not in idle}
    config = replace(config, schedule_steps=total, **values)
    check_schedule(config, total)
    if not changed:
        return config, None
    listed = ", ".join(f"{flag(name)} {value}" for name, value in changed.items())
    return config, f"schedule scaled from {planned} to {total} steps, --lr not: {listed}"
