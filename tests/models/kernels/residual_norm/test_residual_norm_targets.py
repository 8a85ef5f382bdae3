"""The Triton kernels of residual norms, compiled for GPUs that need not be there."""

from __future__ import annotations

import pytest

from tests.support.kernel_targets import MARKS, SHARED, compiled

pytestmark = MARKS


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("target", SHARED)
def test_residual_norms(target, dtype):
    from bayeslora_cli.models.kernels.residual_norm import residual_norm_triton as kernels

    constants = {"DROPS": True, "ROWS": 2, "GROUPS": 128}
    for kernel in (kernels._forward, kernels._backward):
        names = [n for n in kernel.arg_names if n in NAMES]
        signature = dict.fromkeys(names, f"*{dtype}") | {
            "seed": "*i64", "gain": "fp32", "eps": "fp32",
        }  # fmt: skip
        found = compiled(kernel, target, signature, constants, warps=kernels.WARPS)
        assert found.metadata.shared <= SHARED[target] * 1024
        assert "ld.global.b16" not in found.asm["ptx"], "it reads two bytes at a time"


NAMES = ("x", "residual", "weight", "bias", "out", "sum", "grad", "to_residual", "to_x")
