"""Reads, composes and checks presets/*.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OPTIMIZERS, criteria_of
from bayeslora_cli.config.effects import inapplicable
from bayeslora_cli.config.files.foreign_names import hint
from bayeslora_cli.config.files.toml_files import from_file
from bayeslora_cli.config.run_config import METHOD_ROW, OPTIONS
from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import ConfigError


def sections() -> dict[str, tuple[str | None, str | None]]:
    """Return the tables that a preset may have, each with the method and optimizer of its rows.

    [method], [optimizer], [method-optimizer] and [method-optimizer-criterion].
    """
    found: dict[str, tuple[str | None, str | None]] = {
        **{optimizer: (None, optimizer) for optimizer in OPTIMIZERS},
        **{method: (method, None) for method in METHODS},
    }
    for method in METHODS:
        for optimizer in OPTIMIZERS:
            row = f"{method}-{optimizer}"
            names = (row, *(f"{row}-{c}" for c in criteria_of(method, optimizer)))
            found |= dict.fromkeys(names, (method, optimizer))
    return found


def presets_directory() -> Path:
    """Return `presets/`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def list_presets() -> dict[str, str]:
    """Return the names of the built-in presets, and the beginning of each one's comment."""
    found = {}
    for path in sorted(presets_directory().glob("*.toml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in lines[: _first(lines)])
        found[path.stem] = re.split(r"\. | \(|, for rank", comment)[0].rstrip(".")
    return found


def _first(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))


@cache
def values_in_presets() -> dict[str, str]:
    """Return what the built-in presets set, by option, as text: 7 to 50, boost or linear."""
    found: dict[str, set[Any]] = {}
    for name in list_presets():
        table = read_preset(preset_file(name))
        for values in (top_level(table), *(v for v in table.values() if isinstance(v, dict))):
            for key, value in values.items():
                found.setdefault(key, set()).add(value)
    return {name: text for name, values in found.items() if (text := _spread(name, values))}


def _spread(name: str, values: set[Any]) -> str:
    """Write numbers as a range and choices as a list; for other values return an empty text."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return " to ".join(dict.fromkeys(f"{end(values):g}" for end in (min, max)))
    words = sorted({str(value) for value in values})
    return " or ".join(words) if OPTIONS[name].choices and name not in ("task", *METHOD_ROW) else ""


def preset_file(name: str, beside: Path | None = None) -> Path:
    """Return the file that `--preset NAME|FILE` or `extends` names.

    Args:
        beside: the extending file; a relative path starts from its directory.
    Raises:
        ConfigError: there is no such preset.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or len(path.parts) > 1:
        path = path if beside is None else beside.parent / path
    else:
        path = presets_directory() / f"{name}.toml"
    if not path.is_file():
        known = list_presets()
        where = "" if beside is None else f"{beside}: extends "
        raise ConfigError(
            [f"{where or '--preset '}{name}: no such preset{nearest(name, known)}; give a .toml "
             f"file or one of {', '.join(known)}"]
        )  # fmt: skip
    return path


def read_preset(path: Path) -> dict[str, Any]:
    """Read and check a preset's table; lists become tuples, integers for real options floats.

    Raises:
        ConfigError: the file is not TOML, sections or keys are unknown (the nearest name is
            suggested), or values have another type than the option; all problems together.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ConfigError([f"preset {path}: cannot be read: {error}"]) from error
    problems: list[str] = []
    checked: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            problems += [f"preset {path}: [{key}] {problem}" for problem in _misplaced(key, value)]
            checked[key] = {k: _checked(path, k, v, problems) for k, v in value.items()}
        elif key == "extends" and isinstance(value, str):
            checked[key] = value
        else:
            checked[key] = _checked(path, key, value, problems)
    problems += [f"preset {path}: {problem}" for problem in _set_twice(checked)]
    if problems:
        raise ConfigError(problems)
    return checked


def _misplaced(section: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of a table's name, and of keys that it cannot have."""
    known = sections()
    if section not in known:
        yield f"is no method row{nearest(section, known)}"
        return
    for name in METHOD_ROW:
        if name in values:
            yield f"{name}: belongs to the top of the file"
    method, optimizer = known[section]
    idle: dict[str, str] = {}
    if method is not None:
        idle |= inapplicable(METHODS, method, f"--method {method}")
    if optimizer is not None:
        idle |= inapplicable(OPTIMIZERS, optimizer, f"--optimizer {optimizer}")
    for name in values:
        if name in idle:
            yield f"{name}: has no effect with {idle[name]}"


def _set_twice(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of keys set both in a method's and an optimizer's table, but not for both."""
    for method in METHODS:
        for optimizer in OPTIMIZERS:
            decided = table.get(f"{method}-{optimizer}", {})
            for name in table.get(method, {}):
                if name in table.get(optimizer, {}) and name not in decided:
                    yield (
                        f"{name} is in [{method}] and in [{optimizer}]: for rows of both, put it "
                        f"into [{method}-{optimizer}]"
                    )


def _checked(path: Path, key: str, value: Any, problems: list[str]) -> Any:
    if key not in OPTIONS:
        if key == "extends":
            problems.append(f"preset {path}: extends = {value!r}: must be a string")
        elif elsewhere := hint(key, _assignment, OPTIONS.__contains__):
            problems.append(f"preset {path}: {key}: {elsewhere}")
        else:
            near = nearest(key, (*OPTIONS, "extends"))
            problems.append(f"preset {path}: {key} is no option{near}")
        return value
    if OPTIONS[key].typed_only and value is True:
        problems.append(f"preset {path}: {key}: only the command line can allow code to run")
    try:
        return from_file(key, value)
    except TypeError as error:
        problems.append(f"preset {path}: {error}")
        return value


def _assignment(key: str, value: str) -> str:
    return f'{key} = "{value}"' if value else key


def preset_chain(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a preset and those that it extends, the most general first: (name to show, table).

    Raises:
        ConfigError: raised by `preset_file` or `read_preset`, or presets extend one another.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    seen: list[Path] = []
    path: Path | None = preset_file(name)
    while path is not None:
        if path.resolve() in seen:
            raise ConfigError([f"preset {path}: extends itself, by way of what it extends"])
        seen.append(path.resolve())
        table = read_preset(path)
        built_in = path.resolve().parent == presets_directory()
        chain.insert(0, (path.stem if built_in else str(path), table))
        path = preset_file(table["extends"], beside=path) if "extends" in table else None
    return chain


def task_chain(task: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the task's own preset and those that it extends; empty if it has none.

    Raises:
        ConfigError: raised by `read_preset`.
    """
    return preset_chain(task) if (presets_directory() / f"{task}.toml").is_file() else []


def top_level(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a preset sets for all method rows."""
    return {k: v for k, v in table.items() if k != "extends" and not isinstance(v, dict)}


def row_values(
    table: Mapping[str, Any], method: str, optimizer: str, criterion: str | None
) -> dict[str, Any]:
    """Return a preset's values for one method row.

    The top level holds what all rows share. The tables [method] and [optimizer], which never set
    the same key, then [method-optimizer] and [method-optimizer-criterion] override it in this
    order.
    """
    values = top_level(table)
    row = f"{method}-{optimizer}"
    for section in (method, optimizer, row, f"{row}-{criterion}"):
        values.update(table.get(section, {}))
    return values
