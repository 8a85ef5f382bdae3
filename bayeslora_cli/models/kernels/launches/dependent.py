"""How kernels follow each other on a GPU: each after the last, or while the last one ends.

From sm_90 on a kernel may be launched as dependent on the one before it in its stream: its programs
take their places while the last programs of the other finish, and wait there until all that it
wrote can be read (`dependent_triton.wait_for_last`). So the gap of about a microsecond between two
kernels is gone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

DEPENDENT = False
"""Whether our kernels, and those of torch's compiler, are launched so. Being measured:
`tests/benchmarks/start.py --dependent`."""
FIRST = (9, 0)
"""The first GPUs that can do so."""


def options(device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments with which a kernel that calls `wait_for_last` is launched."""
    return {"PDL": True, "launch_pdl": True} if DEPENDENT and _can(device) else {}


def prepare_compiler() -> None:
    """Have torch's compiler launch its kernels likewise, where its version can."""
    import torch._inductor.config as inductor  # this import takes a second

    if hasattr(inductor.triton, "enable_pdl"):
        inductor.triton.enable_pdl = DEPENDENT


@cache
def _can(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST
