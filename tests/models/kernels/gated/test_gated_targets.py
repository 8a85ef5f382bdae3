"""The Triton kernels of B-LoRA's layers, compiled for GPUs that need not be there."""

from __future__ import annotations

import pytest

from bayeslora_cli.models.kernels.low_rank.tiles import LARGE, SMALL
from tests.support.kernel_targets import MARKS, SHARED, compiled

pytestmark = MARKS

HEIGHTS = ("height_0", "height_1", "height_2")


def types(brains, floats):
    return dict.fromkeys(brains.split(), "*bf16") | dict.fromkeys(floats.split(), "*fp32")


@pytest.mark.parametrize("target", SHARED)
@pytest.mark.parametrize("kept", [False, True])
def test_forward(target, kept):
    from bayeslora_cli.models.kernels.gated import gated_linear_triton as kernels

    by = " ".join(f"{what}_{of}" for of in "xah" for what in ("learned", "constants"))
    cut = kernels._cut(kernels.FORWARD, 8, 2)
    warps, stages = cut.pop("num_warps"), cut.pop("num_stages")
    found = compiled(
        kernels._forward, target, types("x a p h kept", f"e {by}"),
        {"R": 8, "L": 4, "KEEP": kept, **cut}, warps=warps, stages=stages,
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


@pytest.mark.parametrize("target", SHARED)
def test_back_to_p(target):
    """Heights are known to be multiples of 16: else it would read two bytes at a time."""
    from bayeslora_cli.models.kernels.gated import gated_linear_triton as kernels

    cut = kernels._cut(kernels.TO_P, 8, 2)
    warps, stages = cut.pop("num_warps"), cut.pop("num_stages")
    found = compiled(
        kernels._back_to_p, target,
        types("grad b p of_p", "e learned_a constants_a constants_h sums"),
        {"R": 8, "L": 4, **cut}, warps=warps, stages=stages, even=HEIGHTS,
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


@pytest.mark.parametrize("tiles", [SMALL, LARGE])
def test_slopes(tiles):
    """For sm_90, whose engine copies tiles; no other GPU is given it."""
    from bayeslora_cli.models.kernels.gated import gated_base_triton as kernels

    found = compiled(
        kernels._slopes, 90,
        {"grad": f"tensordesc<bf16[{tiles.rows}, {tiles.depth}]>",
         "matrix": f"tensordesc<bf16[{tiles.depth}, {tiles.columns}]>", **types("to_p a out", "")},
        {"R": 8, "RANK": 16, "ROWS": tiles.rows, "COLUMNS": tiles.columns, "DEPTH": tiles.depth,
         "GROUP": kernels.GROUP},
        warps=tiles.warps, stages=tiles.stages, even=("width", *HEIGHTS),
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[90] * 1024
    assert "wgmma.mma_async" in found.asm["ptx"]


@pytest.mark.parametrize("target", SHARED)
def test_weight_sums(target):
    from bayeslora_cli.models.kernels.gated import gated_base_triton as kernels

    found = compiled(
        kernels._weight_sums, target, types("weight", "product constants sums"),
        {"L": 4, "SIZE": kernels.SIZE, "BLOCKS": kernels.BLOCKS}, warps=kernels.WARPS,
        even=("size",),
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024
    assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"
