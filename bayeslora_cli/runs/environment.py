"""Records versions, device, command line, start and end of a run in environment.json."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

import torch

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.directory import RunDir

logger = logging.getLogger("bayeslora")

PACKAGES = (
    "bayeslora", "torch", "transformers", "peft", "ivon-opt", "datasets", "tokenizers",
    "safetensors", "scikit-learn", "scipy", "torchmetrics",
)  # fmt: skip


def environment(
    device: torch.device,
    revision: str | None,
    backbone_sha256: str,
    processes: int = 1,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect versions, device and command line for environment.json, at the start of a run.

    Args:
        device: the first process's device.
        revision: the backbone's revision on the hub; None: it is not from the hub.
        backbone_sha256: `Network.backbone_sha256`, by which later commands check the backbone.
        processes: the number of processes that train the run.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "versions": versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "model_revision": revision,
        "backbone_sha256": backbone_sha256,
        **({} if identity is None else {"identity": dict(identity)}),
        "command": sys.argv,
        "start": now(),
        "end": None,
    }


def record_environment(
    run: RunDir,
    device: torch.device,
    revision: str | None,
    backbone_sha256: str,
    processes: int = 1,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Write environment.json; a process that resumes a run is added below the first one."""
    found = environment(device, revision, backbone_sha256, processes, identity)
    if run.environment.is_file():
        try:
            first = run.read_json(run.environment)
            found = {**first, "resumed": [*first.get("resumed", []), found]}
        except (RunDirError, TypeError) as error:
            logger.warning("%s is written anew: %s", run.environment, error)
    write_json(run.environment, found)


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed versions of packages; None: not installed."""
    return {package: version(package) for package in packages}


@cache  # reading a package's metadata takes milliseconds
def version(package: str) -> str | None:
    """Return the installed version of a package; None: not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    """Return the time in UTC, in ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
