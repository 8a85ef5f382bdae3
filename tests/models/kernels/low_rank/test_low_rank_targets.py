"""The Triton kernels of low-rank products, compiled for GPUs that need not be there."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from bayeslora_cli.models.kernels.low_rank.tiles import LARGE, SMALL, extent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not find_spec("triton") or os.environ.get("TRITON_INTERPRET") == "1",
        reason="needs Triton, not interpreted",
    ),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),  # Triton 3.9's
]
SHARED = {80: 163, 86: 99, 89: 99, 90: 227}
"""KiB of shared memory that a program may use."""


def compiled(kernel, target, signature, constants, *, warps, stages):
    """Compile a kernel for operands in bf16, all sizes multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    whole = [["tt.divisibility", 16]]
    even = [n for n in names if str(signature.get(n)).startswith("*") or n in ("width", "height")]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else signature.get(n, "i32") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): whole for n in even},
    )
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize("rank", [8, 24])
def test_gradients(target, rank):
    from bayeslora_cli.models.kernels.low_rank import gradients_triton as kernels

    signature = dict.fromkeys(("to_h", "x", "h", "grad", "to_down", "to_up"), "*bf16")
    found = compiled(
        kernels._gradients, target, {**signature, "parts": "*fp32", "done": "*i32"},
        {"R": rank, "RANK": extent(rank), "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS,
         "UNROLLED": kernels.UNROLLED},
        warps=kernels.WARPS, stages=kernels.STAGES,
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


@pytest.mark.parametrize("tiles", [SMALL, LARGE])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("gelu", [None, "GELU", "SLOPE"])
def test_fused(tiles, transposed, gelu):
    """For sm_90, whose engine copies tiles; no other GPU is given it."""
    from bayeslora_cli.models.kernels.low_rank import fused_triton as kernels

    block = [tiles.columns, tiles.depth] if transposed else [tiles.depth, tiles.columns]
    signature = {
        "left": f"tensordesc<bf16[{tiles.rows}, {tiles.depth}]>",
        "matrix": f"tensordesc<bf16[{block[0]}, {block[1]}]>",
        "narrow": f"tensordesc<bf16[16, {tiles.depth}]>",
        **dict.fromkeys(("factor", "bias", "other", "out", "tail"), "*bf16"),
    }
    found = compiled(
        kernels._fused, 90, signature,
        {"GELU": gelu == "GELU", "SLOPE": gelu == "SLOPE",
         "R": 8, "RANK": 16, "BIAS": True, "TRANSPOSED": transposed, "ROWS": tiles.rows,
         "COLUMNS": tiles.columns, "DEPTH": tiles.depth, "GROUP": kernels.GROUP},
        warps=tiles.warps, stages=tiles.stages,
    )  # fmt: skip
    assert found.metadata.shared <= tiles.shared_memory(8, 2) + 1024
    assert "wgmma.mma_async" in found.asm["ptx"]
    assert "cp.async.bulk.tensor" in found.asm["ptx"]
