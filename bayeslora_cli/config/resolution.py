"""Preset + command line -> a resolved configuration, and the name of its run directory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OPTIMIZERS, criteria_of
from bayeslora_cli.config.effects import without_effect
from bayeslora_cli.config.presets import preset_chain, row_values, task_chain, top_level
from bayeslora_cli.config.run_config import FIELDS, RunConfig, check_schedule, flag
from bayeslora_cli.errors import ConfigError

# step numbers that a preset states for its own total and that scale with another
SCHEDULED = ("warmup_steps", "boost_until_step", "t_init", "t_final", "delta_t", "eval_every")
BLORA_RANK = 8  # of every matrix at the start
# an evaluation costs what it costs: short runs are not to spend most of their time on them
EVAL_EVERY_AT_LEAST = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: RunConfig
    sources: Mapping[str, str]
    """Field name -> default, preset NAME or command line."""
    changed: Mapping[str, Any]
    """Values that affect the result otherwise than the task's own preset does."""
    notices: tuple[str, ...] = ()
    """Typed options without effect, a sentence each."""


def resolve(typed: Mapping[str, Any], preset: str | None = None) -> Resolved:
    """Defaults, then the task's own preset, then the preset asked for, then what was typed.

    A preset that extends another lies over that one, any other over the task's own.

    Args:
        typed: field name -> value, only what the user gave.
        preset: name or file of a preset.
    Raises:
        ConfigError: all problems of the outcome together.
    """
    typed = _checked_paths(typed)
    chain = [] if preset is None else preset_chain(preset)
    asked = len(chain)
    task = _task(typed, _top(chain))
    own = task_chain(task)
    if chain and chain[:1] != own[:1] and "extends" not in chain[-1][1]:
        chain = own + chain
    chain = chain or own

    top = _top(chain) | typed
    method = top.get("method", "adalora")
    default = METHODS[method].default_optimizer if method in METHODS else "ivon"
    optimizer = top.get("optimizer", default)
    known = method in METHODS and optimizer in OPTIMIZERS
    allowed = criteria_of(method, optimizer) if known else ()
    criterion = top.get("criterion", allowed[0] if allowed else None)
    row: dict[str, Any] = {
        "task": task, "method": method, "optimizer": optimizer, "criterion": criterion,
    }  # fmt: skip
    layers = [(name, row_values(table, method, optimizer, criterion)) for name, table in chain]
    from_presets = _checked_paths(_merged([found for _, found in layers]))
    idle = without_effect(method, optimizer, from_presets | row | typed)
    notices = tuple(f"{flag(n)} has no effect with {idle[n]}" for n in typed if n in idle)
    if preset is not None and not any(found for _, found in layers[len(layers) - asked :]):
        combination = "-".join(p for p in (method, optimizer, criterion) if p)
        notices += (f"--preset {preset} has no effect: it says nothing of {combination}",)
    typed = {name: value for name, value in typed.items() if name not in idle}

    values = from_presets | typed | row
    target_rank = values.get("target_rank", 2)
    # 3 for 2 and 6 for 4, as in all of the paper's runs; a fixed rank starts where it ends
    row["init_rank"] = -(-3 * target_rank // 2) if method == "adalora" else target_rank
    if method == "blora":  # has no target: its runs go by the rank that they begin with
        row["init_rank"] = values.get("init_rank", BLORA_RANK)
        row["target_rank"] = values["target_rank"] = row["init_rank"]
    config = RunConfig(**row | values)
    sources = dict.fromkeys(FIELDS, "default")
    for name, found in layers:
        sources |= dict.fromkeys(found, f"preset {name}")
    sources |= dict.fromkeys(typed, "command line")

    usual: dict[str, Any] = {name: field.default for name, field in FIELDS.items()} | row
    usual |= _merged([row_values(table, method, optimizer, criterion) for _, table in own])
    changed = {
        name: getattr(config, name)
        for name, field in FIELDS.items()
        if field.metadata["affects_result"]
        # a typed step number does not scale, the preset's equal one does
        and (
            (name in typed and name in SCHEDULED and name in from_presets)
            or getattr(config, name) != usual[name]
        )
    }
    return Resolved(config=config, sources=sources, changed=changed, notices=notices)


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers over one another, the later winning.

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


def _scaled(name: str, value: int, total: int, planned: int) -> int:
    least = {"t_final": 1, "delta_t": 1, "eval_every": min(value, EVAL_EVERY_AT_LEAST)}
    return max(least.get(name, 0), value * total // planned)


def _top(chain: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return {name: value for _, table in chain for name, value in top_level(table).items()}


def _task(typed: Mapping[str, Any], preset: Mapping[str, Any]) -> str:
    """The task that is named, or `custom` for a user's own files, whatever the preset's task is.

    Raises:
        ConfigError: neither, or both typed.
    """
    task, file = typed.get("task"), typed.get("train_file")
    if file is not None and task not in (None, "custom"):
        raise ConfigError(
            [f"--train-file {file}: not together with --task {task}, which has examples of its "
             f"own; --preset {task} takes its settings alone"]
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


def _checked_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, directories and files by their absolute paths, reals as such.

    Raises:
        ConfigError: no such directory of data.
    """
    found = dict(given)
    data = given.get("data")
    if data is not None and not Path(data).expanduser().is_dir():
        what = "is no directory" if Path(data).expanduser().exists() else "no such directory"
        raise ConfigError([f"--data {data}: {what}; give GLUE's TSV layout or a saved data set"])
    for key in ("data", "model", "output", "train_file", "eval_file"):
        if given.get(key) is not None and Path(given[key]).expanduser().exists():
            found[key] = str(Path(given[key]).expanduser().resolve())
    for key, value in given.items():
        if isinstance(value, int) and str(FIELDS[key].type).startswith("float"):
            found[key] = float(value)
    return found


def scale_schedule(resolved: Resolved, total: int) -> tuple[RunConfig, str | None]:
    """Fit a preset's step numbers to a run of `total` steps; typed numbers stay as they are.

    Returns:
        The configuration with its final numbers, and one notice if any of them changed.
    Raises:
        ConfigError: numbers that do not fit.
    """
    config = resolved.config
    planned = config.schedule_steps or total
    values: dict[str, Any] = {}
    for name in SCHEDULED:
        value = getattr(config, name)
        if value is None or resolved.sources[name] == "command line" or planned == total:
            continue
        values[name] = _scaled(name, value, total, planned)
    idle = without_effect(config.method, config.optimizer, {"lr_schedule": config.lr_schedule})
    changed = {n: v for n, v in values.items() if v != getattr(config, n) and n not in idle}
    config = replace(config, schedule_steps=total, **values)
    check_schedule(config, total)
    if not changed:
        return config, None
    listed = ", ".join(f"{flag(name)} {value}" for name, value in changed.items())
    return config, f"schedule scaled from {planned} to {total} steps, --lr not: {listed}"


def run_name(resolved: Resolved) -> Path:
    """Relative directory of a run: model / task-method-optimizer[-criterion]-rR[-hash] / seed-S."""
    config = resolved.config
    model = Path(config.model)
    slug = model.name if model.is_dir() else config.model.replace("/", "--")
    if config.model.startswith("package:"):
        slug = model.parts[0].removeprefix("package:")
    if slug.lower() in ("model", "checkpoint", "final") and model.parent.name:
        slug = f"{model.parent.name}-{slug}"
    task = config.task if config.train_file is None else _file_stem(config.train_file)
    parts = [task, config.method, config.optimizer, config.criterion]
    if config.method != "full":
        parts.append(f"r{config.target_rank}")
    named = {"task", "method", "optimizer", "criterion", "target_rank", "seed"}
    if not model.is_dir():
        named.add("model")
    others = {name: value for name, value in resolved.changed.items() if name not in named}
    if others:
        text = json.dumps(others, sort_keys=True)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return Path(slug) / "-".join(p for p in parts if p) / f"seed-{config.seed}"


def _file_stem(source: str) -> str:
    """What a run on a user's own file is called: the file's name, or the hub's."""
    path = Path(source)
    name = path.stem if path.is_file() else source
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "custom"
