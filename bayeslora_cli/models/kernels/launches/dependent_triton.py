"""The first instructions of a kernel that may be launched while the one before it ends."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_last(PDL: tl.constexpr) -> None:
    """Wait until what the kernel before wrote can be read; then let the next one's programs come.

    Those take the places that become free while this kernel ends, and wait likewise.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
