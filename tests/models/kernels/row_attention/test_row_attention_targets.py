"""The Triton kernels of attention within rows, compiled for GPUs that need not be there."""

from __future__ import annotations

import pytest

from bayeslora_cli.models.kernels.low_rank.tiles import Gpu
from bayeslora_cli.models.kernels.row_attention.tiles import extent, plan_of
from tests.support.kernel_targets import MARKS, SHARED, compiled

pytestmark = MARKS
STRIDES = ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head", "to_token")


def check(kernel, target, cut, dtype, constants, *, floats=()):
    """The kernel compiles, and its tiles fit into the GPU's shared memory."""
    names = set(kernel.arg_names)
    addresses = {"q", "k", "v", "c2p", "p2c", "bias", "out", "grad", "to_q", "to_k", "to_v",
                 "to_c2p", "to_p2c"}  # fmt: skip
    signature = dict.fromkeys(addresses & names, f"*{dtype}")
    signature |= dict.fromkeys({"norm", "slope", "parts"} & names, "*fp32")
    signature |= dict.fromkeys({"row_offsets", "done"} & names, "*i32")
    signature |= dict.fromkeys({"kept"} & names, "*i64") | dict.fromkeys(floats, "fp32")
    found = compiled(
        kernel, target, signature, constants, warps=cut.warps, stages=cut.stages,
        even=(*STRIDES, "width"),
    )  # fmt: skip
    assert found.metadata.shared <= SHARED[target] * 1024


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("target", SHARED)
def test_attention(target, dtype, relative):
    from bayeslora_cli.models.kernels.row_attention import backward_triton, forward_triton
    from bayeslora_cli.models.kernels.row_attention import positions_triton as positions

    itemsize = 2 if dtype == "bf16" else 4
    gpu = Gpu(multiprocessors=108, shared_memory=SHARED[target] * 1024, copies_tiles=target >= 90)
    plan = plan_of(64, itemsize, gpu)
    shape = {
        "D": 64, "DEPTH": extent(64), "PRECISION": "ieee" if dtype == "bf16" else "tf32x3",
    }  # fmt: skip
    rows = {"ROWS": 32, "SINGLE": False}
    flags = {"RELATIVE": relative, "DROPS": True, "WINDOWED": False}
    for kernel, cut, more, floats in (
        (forward_triton.attend, plan.forward, {}, ("scale", "gain")),
        (backward_triton.to_queries, plan.to_queries, {"WIDTH": 64}, ("scale", "factor", "gain")),
        (backward_triton.to_keys, plan.to_keys, {"WIDTH": 64}, ("scale", "factor", "gain")),
    ):
        constants = {**shape, **rows, **flags, **more, "OWN": cut.own, "OTHER": cut.other}
        check(kernel, target, cut, dtype, constants, floats=floats)
    if relative:
        cut = plan.positions
        constants = {**shape, "TILE": cut.own}
        check(positions.score_positions, target, cut, dtype, constants | rows)
        unrolled = {"UNROLLED": positions.UNROLLED}
        check(positions.to_positions, target, cut, dtype, constants | unrolled, floats=("factor",))
