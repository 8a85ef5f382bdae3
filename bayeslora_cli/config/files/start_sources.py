"""Finds what --from names, and the pretrained model that belongs to it, without torch."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path

from bayeslora_cli.errors import ConfigError

RUN, ADAPTER, MERGED = "run", "adapter", "merged model"


def kind_of_source(source: str) -> str | None:
    """Return what a directory is: `RUN`, `ADAPTER` or `MERGED`; None: none of them."""
    path = Path(source)
    for name, kind in (("config.toml", RUN), ("adapter_config.json", ADAPTER)):
        if (path / name).is_file():
            return kind
    return MERGED if (path / "config.json").is_file() else None


def model_of(source: str, typed: str | None = None) -> str | None:
    """Return the pretrained model that a source was trained on; None: it is not told, or the user
    has typed one.

    A merged model is its own.

    Raises:
        ConfigError: the source is nothing that a run can begin with, or is another whole model than
            the typed one.
    """
    kind, path = kind_of_source(source), Path(source)
    if kind == MERGED and typed is not None and Path(typed).resolve() != path.resolve():
        raise ConfigError(
            [f"--from {source}: is a whole model, and --model {typed} is another; leave one out"]
        )
    if typed is not None:
        return None
    if kind is None:
        what = "is no run, adapter or model" if Path(source).exists() else "no such directory"
        raise ConfigError(
            [
                f"--from {source}: {what}; give a run's directory, one with adapter_config.json, "
                "or one with config.json and a whole model"
            ]
        )
    found: object = None
    with suppress(OSError, ValueError):
        if kind == RUN:
            found = tomllib.loads((path / "config.toml").read_text(encoding="utf-8")).get("model")
        elif kind == ADAPTER:
            text = (path / "adapter_config.json").read_text(encoding="utf-8")
            found = json.loads(text).get("base_model_name_or_path")
        elif kind == MERGED:
            found = source
    return found if isinstance(found, str) and found else None
