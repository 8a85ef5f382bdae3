"""Writes and reads `RunConfig` as TOML."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from typing import Any

from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import ConfigError, UserError

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a string"),
    "tuple[str, ...]": ((list,), "a list of strings"),
}


def from_file(name: str, value: Any) -> Any:
    """Convert a value from TOML to a field's: a list to a tuple, an integer for a real to a float.

    Raises:
        TypeError: the value has another type; the message tells what it must be.
    """
    option = OPTIONS[name]
    if isinstance(value, bool) and option.bare is not None:
        return option.bare if value else option.default
    kind = option.type.removesuffix(" | None")
    types, expected = _KINDS[kind]
    items = value if isinstance(value, list) else []
    right = isinstance(value, types) and isinstance(value, bool) == (kind == "bool")
    if not right or not all(isinstance(item, str) for item in items):
        raise TypeError(f"{name} = {value!r}: must be {expected}")
    if kind == "float" and isinstance(value, int) and abs(value) >= 10**300:
        raise TypeError(f"{name}: a number of {len(str(value))} digits: is too large")
    return float(value) if kind == "float" else tuple(value) if kind.startswith("tuple") else value


def to_toml(config: RunConfig) -> str:
    """Write a configuration as TOML; values of None are left out."""
    import tomli_w

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return tomli_w.dumps({k: v for k, v in values.items() if v is not None})


def from_toml(text: str, name: str) -> RunConfig:
    """Read back what `to_toml` wrote.

    Args:
        name: the file's name, for messages.
    Raises:
        UserError: the text is not TOML, or has keys that this version does not know.
    """
    try:
        values = tomllib.loads(text)
        values = {k: from_file(k, v) if k in OPTIONS else v for k, v in values.items()}
        nothing = {"criterion": None}  # None is left out of the file, but is not the default
        return RunConfig(**(nothing | values))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{name} is corrupt: {error}; put the file back") from error
    except (TypeError, ConfigError) as error:
        raise UserError(f"{name} is not a configuration of this version: {error}") from error
