"""Writes a preset with all values that a run with it would have, as TOML usable as a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bayeslora_cli.config.effects import without_effect
from bayeslora_cli.config.files.presets import preset_chain, top_level
from bayeslora_cli.config.options import PANELS
from bayeslora_cli.config.resolution import Resolved, resolve
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.errors import ConfigError


def resolved_preset(name: str, typed: Mapping[str, Any]) -> str:
    """Write every value that the preset `name` leads to and its source, panel by panel.

    The values are those of one method row, at the top level of the file. Values that TOML cannot
    hold, such as a default that depends on the data, and the user's files are in comments.

    Args:
        typed: the task or the method row, if the preset's own are not meant.
    Raises:
        ConfigError: raised by `resolve`, or neither the preset nor `typed` names a task.
    """
    tops = [top_level(table) for _, table in preset_chain(name)]
    task = typed.get("task", next((t["task"] for t in reversed(tops) if "task" in t), None))
    if task is None and not any("train_file" in top for top in tops):
        raise ConfigError([f"preset {name} names no task: give --task as well"])
    own_rows = task == "custom" and not any("train_file" in top for top in tops)
    resolved = resolve({**typed, **({"train_file": "FILE"} if own_rows else {})}, name)
    config, sources = resolved.config, dict(resolved.sources)
    for option, why in without_effect(config.method, config.optimizer, asdict(config)).items():
        sources[option] += f"; no effect with {why}"
    values = {n: value for n, value in asdict(config).items() if value is not None}
    if own_rows:
        del values["train_file"]
    lines = [f"# preset {name}, resolved for {_row(resolved)}"]
    for panel in PANELS:
        mine = [o for o in OPTIONS.values() if o.panel == panel and not o.typed_only]
        lines += ["", f"# {panel}"] * bool(mine)
        lines += [
            f"{o.name} = {_toml(values[o.name])}  # {sources[o.name]}"
            if o.name in values
            else f"# {o.name}: {o.text()}"
            for o in mine
        ]
    return "\n".join([*lines, ""])


def _row(resolved: Resolved) -> str:
    c = resolved.config
    return " ".join(part for part in (c.task, c.method, c.optimizer, c.criterion) if part)


def _toml(value: Any) -> str:
    """Write a value as TOML does."""
    import tomli_w

    item = list(value) if isinstance(value, tuple) else value
    return " ".join(tomli_w.dumps({"x": item}).removeprefix("x = ").split())
