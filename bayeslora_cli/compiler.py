"""torch.compile for a backbone's repeated blocks, each compiled once and used by all its likes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

# steps from which compiling pays on a GPU: it takes some five seconds for each padded width and
# saves some milliseconds a step (45 s and 3 to 5 ms on an H200)
WORTH_IT = 20_000
# widths, row counts and phases that a block is compiled for, before it runs as it is; the model's
# first block counts for itself, as its input has no gradient
VARIANTS = 128


def is_worth_compiling(choice: str, steps: int) -> bool:
    """Whether to compile a run of so many steps on a GPU, `choice` being auto, on or off."""
    return choice == "on" or (choice == "auto" and steps >= WORTH_IT and bool(find_spec("triton")))


def compile_blocks(module: nn.Module) -> None:
    """Compile the blocks of each list of like layers, in place; names stay.

    Blocks and not the whole: all blocks share the code compiled for the first.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * VARIANTS)
    for blocks in list(module.modules()):
        if isinstance(blocks, nn.ModuleList) and len({type(block) for block in blocks}) == 1:
            for block in blocks:
                block.compile(dynamic=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Blocks run as they are: what is seen a few times is not worth compiling."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
