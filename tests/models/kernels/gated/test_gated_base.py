"""B-LoRA's layers with quantized frozen weights against torch's operators."""

from __future__ import annotations

import os

import pytest
import torch

from bayeslora_cli.models.kernels.gated import gated_base, gated_linear
from bayeslora_cli.models.kernels.low_rank import tiles
from tests.models.kernels.gated.test_gated_linear import ADDED, CASES, H200, check


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heights", "width"), CASES)
@pytest.mark.parametrize("widths", [1, 4])
def test_quantized_weights_as_by_torchs_operators(dtype, heights, width, widths):
    """As far as rounding goes."""
    check(dtype, heights, width, widths, "cuda", base=True)


@pytest.mark.gpu
@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(("heights", "width"), ADDED)
@pytest.mark.parametrize("rows", [1, 150, 2050])
def test_quantized_weights_of_whole_tiles(heights, width, rows):
    check(torch.bfloat16, heights, width, 4, "cuda", rows=rows, rank=8, base=True)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # it cannot multiply bf16
@pytest.mark.parametrize(("heights", "width"), CASES)
@pytest.mark.parametrize("widths", [1, 4])
def test_quantized_weights_interpreted(dtype, heights, width, widths):
    check(dtype, heights, width, widths, "cpu", base=True)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton and TRITON_INTERPRET=1"
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of places that nothing is read from
@pytest.mark.parametrize("heights", [[40], [128, 128, 128], [256, 128]])
@pytest.mark.parametrize("rows", [1, 150])
def test_quantized_weights_of_whole_tiles_interpreted(heights, rows, monkeypatch):
    monkeypatch.setattr(gated_linear, "is_added", lambda *_: True)
    monkeypatch.setattr(gated_base, "is_added", lambda *_: True)
    monkeypatch.setattr(tiles, "gpu_of", lambda _: H200)
    check(torch.float16, heights, 136, 4, "cpu", rows=rows, rank=8, base=True)
