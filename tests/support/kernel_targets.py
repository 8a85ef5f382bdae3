"""Triton kernels compiled for GPUs that need not be there."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

SHARED = {80: 163, 86: 99, 89: 99, 90: 227}
"""Compute capability -> KiB of shared memory that a program may use."""
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not find_spec("triton") or os.environ.get("TRITON_INTERPRET") == "1",
        reason="needs Triton, not interpreted",
    ),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),  # Triton 3.9's
]


def compiled(kernel, target, signature, constants, *, warps, stages=1, even=("width", "height")):
    """Compile a kernel for a GPU.

    Args:
        signature: types of the arguments that are not int32.
        even: arguments that are multiples of 16, besides addresses.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    whole = [["tt.divisibility", 16]]
    even = [n for n in names if str(signature.get(n)).startswith("*") or n in even]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else signature.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): whole for n in even},
    )
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
