"""Compiles Triton kernels side by side: a first step would compile them one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.runtime.jit import JITFunction

MOST_THREADS = 16


@contextmanager
def compiled_side_by_side() -> Iterator[None]:
    """Have kernels that are called inside compiled by threads, and not launched.

    What they would have computed is left as it is in memory. Backward passes run in the calling
    thread. At the end all kernels are compiled; one that cannot be fails when it is launched. Does
    nothing with a Triton before 3.4.
    """
    if not hasattr(triton, "AsyncCompileMode"):
        yield
        return
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **options)

    count = min(MOST_THREADS, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(count) as threads,
        triton.AsyncCompileMode(threads, ignore_errors=True),
        torch.autograd.set_multithreading_enabled(False),
        patch.object(JITFunction, "run", compile_only),
    ):
        yield
