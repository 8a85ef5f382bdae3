"""The full training state, to disk and back: safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.rundir import replacing

TENSORS = "state.safetensors"
SCALARS = "state.json"


class Stateful(Protocol):
    """The state protocol: what the future depends on, unpruned."""

    def tensors(self) -> dict[str, Tensor]:
        """State tensors; loading writes into them."""

    def scalars(self) -> dict[str, Any]:
        """State that JSON can hold."""

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take `scalars()` of an earlier process."""


def save(directory: Path, parts: Mapping[str, Stateful]) -> None:
    """Write all parts, whole or not at all."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, stateful in parts.items()
        for name, tensor in stateful.tensors().items()
    }
    scalars = {part: stateful.scalars() for part, stateful in parts.items()}
    with replacing(directory) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / TENSORS)
        (temporary / SCALARS).write_text(json.dumps(scalars, indent=2), encoding="utf-8")


def load(directory: Path, parts: Mapping[str, Stateful]) -> None:
    """Bring all parts to the saved state.

    Scalars come first: a part may need them to make room for its tensors.

    Raises:
        RunDirError: unreadable, or of another run.
    """
    try:
        tensors = load_file(directory / TENSORS)
        scalars = json.loads((directory / SCALARS).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise RunDirError(f"{directory} cannot be read: {error}; use --overwrite") from error
    for part, stateful in parts.items():
        if part not in scalars:
            raise RunDirError(f"{directory} is a checkpoint of another run: it has no {part}")
        stateful.load_scalars(scalars[part])
        for name, tensor in stateful.tensors().items():
            saved = tensors.get(f"{part}/{name}")
            if saved is None or saved.shape != tensor.shape:
                raise RunDirError(f"{directory} is a checkpoint of another run: {part}/{name}")
            tensor.copy_(saved)
