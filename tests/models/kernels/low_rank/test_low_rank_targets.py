"""The Triton kernels of low-rank products, compiled for GPUs that need not be there."""

from __future__ import annotations

import pytest

from bayeslora_cli.models.kernels.low_rank.tiles import LARGE, LARGE_SPLIT, SMALL, SPLIT, extent
from tests.support.kernel_targets import MARKS, SHARED, compiled

pytestmark = MARKS


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize("rank", [8, 24])
def test_gradients(target, rank):
    from bayeslora_cli.models.kernels.low_rank import gradients_triton as kernels

    signature = dict.fromkeys(("to_h", "x", "h", "grad", "to_down", "to_up"), "*bf16")
    found = compiled(
        kernels._gradients, target, {**signature, "parts": "*fp32", "done": "*i32"},
        {"R": rank, "RANK": extent(rank), "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS,
         "UNROLLED": kernels.UNROLLED, "PRECISION": "ieee"},
        warps=kernels.WARPS, stages=kernels.STAGES,
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


@pytest.mark.parametrize("target", SHARED)
def test_up_gradient(target):
    from bayeslora_cli.models.kernels.low_rank import gradients_triton as kernels

    found = compiled(
        kernels._up_gradient, target,
        {**dict.fromkeys(("h", "grad", "to_up"), "*bf16"), "parts": "*fp32", "done": "*i32"},
        {"R": 8, "RANK": 16, "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS,
         "UNROLLED": kernels.UNROLLED},
        warps=kernels.WARPS, stages=kernels.STAGES,
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


@pytest.mark.parametrize("tiles", [SMALL, LARGE])
@pytest.mark.parametrize(("layers", "own"), [(1, False), (3, False), (3, True)])
def test_added(tiles, layers, own):
    """For sm_90, whose engine copies tiles; no other GPU is given it."""
    from bayeslora_cli.models.kernels.low_rank import added_triton as kernels

    signature = {
        "left": f"tensordesc<bf16[{tiles.rows}, {tiles.depth}]>",
        "matrix": f"tensordesc<bf16[{tiles.columns}, {tiles.depth}]>",
        **dict.fromkeys(("h", "b", "bias", "out"), "*bf16"),
    }
    found = compiled(
        kernels._added, 90, signature,
        {"R": 8, "RANK": 16, "BIAS": True, "OWN": own, "LAYERS": layers, "ROWS": tiles.rows,
         "COLUMNS": tiles.columns, "DEPTH": tiles.depth, "GROUP": kernels.GROUP},
        warps=tiles.warps, stages=tiles.stages,
    )  # fmt: skip
    assert found.metadata.shared <= tiles.shared_memory(8, 2) + 1024
    assert "wgmma.mma_async" in found.asm["ptx"]


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


@pytest.mark.parametrize("cut", [SPLIT, LARGE_SPLIT])
@pytest.mark.parametrize("transposed", [True, False])
def test_split(cut, transposed):
    """For sm_90, likewise."""
    from bayeslora_cli.models.kernels.low_rank import split_triton as kernels

    block = [cut.columns, cut.depth] if transposed else [cut.depth, cut.columns]
    floats = ("left_scale", "narrow_scale", "unit", "factor", "bias", "out", "tail")
    signature = {
        "left": f"tensordesc<fp16[{cut.rows}, {cut.depth}]>",
        "matrix": f"tensordesc<fp16[{block[0]}, {block[1]}]>",
        "narrow": f"tensordesc<fp16[16, {cut.depth}]>",
        **dict.fromkeys(floats, "*fp32"),
    }  # fmt: skip
    found = compiled(
        kernels._product, 90, signature,
        {"R": 8, "RANK": 16, "BIAS": True, "TRANSPOSED": transposed, "ROWS": cut.rows,
         "COLUMNS": cut.columns, "DEPTH": cut.depth, "GROUP": kernels.GROUP},
        warps=cut.warps, stages=cut.stages,
    )  # fmt: skip
    assert found.metadata.shared <= cut.shared_memory(8, 4) + 1024
    assert "wgmma.mma_async" in found.asm["ptx"]
    assert "cp.async.bulk.tensor" in found.asm["ptx"]
