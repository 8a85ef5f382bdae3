"""Preset + command line -> a resolved configuration, and the name of its run directory."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config import (
    COMBINATIONS,
    DEFAULT_OPTIMIZER,
    FIELDS,
    GLUE_TASKS,
    RunConfig,
    check_schedule,
    flag,
)
from bayeslora_cli.errors import ConfigError

# step numbers that a preset states for its own total and that scale with another
SCHEDULED = ("warmup_steps", "boost_until_step", "t_init", "t_final", "delta_t", "eval_every")
# an evaluation costs what it costs: short runs are not to spend most of their time on them
EVAL_EVERY_AT_LEAST = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: RunConfig
    sources: Mapping[str, str]
    """Field name -> default, preset or command line."""
    changed: Mapping[str, Any]
    """Typed values that affect the result otherwise than the preset's do."""
    notices: tuple[str, ...] = ()
    """Typed options without effect, a sentence each."""


def without_effect(method: str, optimizer: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing beside the others: field name -> why.

    Args:
        values: what was typed over the preset.
    """
    groups = (
        (method != "adalora", ("t_init", "t_final", "delta_t", "orth_reg"), f"--method {method}"),
        (
            method == "full",
            ("target_rank", "init_rank", "alpha", "target_modules"),
            "--method full",
        ),
        (
            optimizer != "ivon",
            ("ess", "hess_init", "ivon_beta1", "ivon_beta2", "clip_radius", "train_samples"),
            f"--optimizer {optimizer}",
        ),
        (
            values.get("lr_schedule", "linear") != "boost",
            ("boost_lr", "boost_until_step"),
            "--lr-schedule linear",
        ),
        (values.get("max_steps") is not None, ("epochs",), "--max-steps"),
    )
    return {name: why for holds, names, why in groups if holds for name in names}


def presets_directory() -> Path:
    """`presets/`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def preset_layers(path: Path, method: str, optimizer: str, criterion: str | None) -> dict[str, Any]:
    """A preset's values for one method row.

    The file's top level holds what all rows share; tables [method], [method-optimizer] and
    [method-optimizer-criterion] follow one another, the more special winning.

    Raises:
        ConfigError: a key that is no option.
    """
    with path.open("rb") as file:
        table = tomllib.load(file)
    values: dict[str, Any] = {k: v for k, v in table.items() if not isinstance(v, dict)}
    for section in (method, f"{method}-{optimizer}", f"{method}-{optimizer}-{criterion}"):
        values.update(table.get(section, {}))
    unknown = [f"preset {path.name}: {key} is no option" for key in values if key not in FIELDS]
    if unknown:
        raise ConfigError(unknown)
    return values


def resolve(typed: Mapping[str, Any]) -> Resolved:
    """Defaults, then the task's preset, then what was typed.

    Args:
        typed: field name -> value, only what the user gave.
    Raises:
        ConfigError: all problems of the outcome together.
    """
    typed = dict(typed)
    method = typed.get("method", "adalora")
    optimizer = typed.get("optimizer", DEFAULT_OPTIMIZER.get(method, "ivon"))
    allowed = COMBINATIONS.get((method, optimizer), ())
    criterion = typed.get("criterion", allowed[0] if allowed else None)
    base: dict[str, Any] = {"method": method, "optimizer": optimizer, "criterion": criterion}

    preset: dict[str, Any] = {}
    path = presets_directory() / f"{typed.get('task', 'rte')}.toml"
    if typed.get("task") in GLUE_TASKS and path.is_file():
        preset = preset_layers(path, method, optimizer, criterion)
    idle = without_effect(method, optimizer, preset | typed)
    notices = tuple(f"{flag(n)} has no effect with {idle[n]}" for n in typed if n in idle)
    typed = {name: value for name, value in typed.items() if name not in idle}
    target_rank = typed.get("target_rank", preset.get("target_rank", 2))
    # 3 for 2 and 6 for 4, as in all of the paper's runs; a fixed rank starts where it ends
    base["init_rank"] = -(-3 * target_rank // 2) if method == "adalora" else target_rank

    data = typed.get("data")
    if data is not None and not Path(data).expanduser().is_dir():
        what = "is no directory" if Path(data).expanduser().exists() else "no such directory"
        raise ConfigError([f"--data {data}: {what}; give GLUE's TSV layout or a saved data set"])
    for key in ("data", "model", "output"):
        if typed.get(key) is not None and Path(typed[key]).expanduser().is_dir():
            typed[key] = str(Path(typed[key]).expanduser().resolve())
    merged = base | preset | typed
    for key, value in merged.items():
        if isinstance(value, int) and str(FIELDS[key].type).startswith("float"):
            merged[key] = float(value)
    config = RunConfig(**merged)
    sources = {
        name: "command line" if name in typed else "preset" if name in preset else "default"
        for name in FIELDS
    }
    without = {name: f.default for name, f in FIELDS.items()} | base | preset
    scaling = preset.keys() & set(SCHEDULED)
    changed = {
        name: getattr(config, name)
        for name in typed
        if FIELDS[name].metadata["affects_result"]
        # a typed step number does not scale, the preset's equal one does
        and (name in scaling or getattr(config, name) != without[name])
    }
    return Resolved(config=config, sources=sources, changed=changed, notices=notices)


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
        least = {"t_final": 1, "delta_t": 1, "eval_every": min(value, EVAL_EVERY_AT_LEAST)}
        values[name] = max(least.get(name, 0), value * total // planned)
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
    if slug.lower() in ("model", "checkpoint", "final") and model.parent.name:
        slug = f"{model.parent.name}-{slug}"
    parts = [config.task, config.method, config.optimizer, config.criterion]
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
