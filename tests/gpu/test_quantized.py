"""Frozen weights in few bits on a CUDA device: `pytest -m gpu tests/gpu/test_quantized.py`."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, implementation
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.models.base_weights.bitsandbytes_codes import to_nf4
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS
from bayeslora_cli.models.kernels.frozen.fp8_rows import (
    FP8,
    quantize_rows,
    scaled_product,
    transposed,
)
from bayeslora_cli.training.loop import train
from tests.gpu.test_causal import (  # noqa: F401
    GPU,
    LENGTHS,
    files,
    llama,
    options,
    pytestmark,
    side_stream,
    trained,
)
from tests.gpu.test_step import strict  # noqa: F401
from tests.support.decoders import CAUSAL, token_rows
from tests.support.evaluation import evaluated
from tests.support.quantized import as_near, check_spoilt_rows
from tests.training.test_step import T_FINAL, T_INIT, TOTAL, make_step

pytest.importorskip("bitsandbytes")
BASES = [name for name, entry in BASE_PRECISIONS.items() if entry.quantized]


@pytest.fixture(autouse=True)
def capable():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies fp8 numbers")


@pytest.mark.parametrize("shape", [(7, 32, 48), (129, 4112, 64), (1, 16, 16)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_in_fp8_and_their_product(shape, scaled, biased):
    """Codes, scales and products of a CPU; halfway between two codes either is right."""
    rows, width, height = shape
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=draws).bfloat16()
    columns = torch.rand(width, generator=draws) + 0.5 if scaled else None
    weight, of_weight = quantize_rows(torch.randn(height, width, generator=draws))
    right, of_right = quantize_rows(x, columns)
    codes, scale = quantize_rows(x.to(GPU), None if columns is None else columns.to(GPU))
    torch.testing.assert_close(scale.cpu(), of_right)
    assert as_near(codes.cpu(), right, x if columns is None else x.float() * columns, of_right)
    other, ones = transposed(weight.to(GPU))
    assert torch.equal(other.cpu().float(), weight.float().t())
    assert torch.equal(ones.cpu(), torch.ones(width))
    given = weight.to(GPU), of_weight[:, 0].to(GPU)
    bias = torch.randn(height, generator=draws).bfloat16() if biased else None
    found = scaled_product(
        codes, scale, *given, torch.bfloat16, None if bias is None else bias.to(GPU)
    ).cpu().double()  # fmt: skip
    wanted = scaled_product(codes.cpu(), scale.cpu(), weight, of_weight[:, 0], torch.float32, bias)
    assert codes.dtype == FP8
    assert (found - wanted).norm() <= 4e-3 * wanted.norm()


def test_codes_wait_for_the_weight():
    """bitsandbytes quantizes on the default stream, which waits for no other."""
    weight = torch.randn(512, 512, device=GPU).bfloat16()
    wanted = to_nf4(weight)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(weight)
        torch.cuda._sleep(200_000_000)
        late.copy_(weight)
        found = to_nf4(late)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_weights_of_integer_codes(dtype):
    """To the bit those of torch's own kernel."""
    implementation(BASE_PRECISIONS["int8"].implementation)  # enters its arithmetic
    codes = torch.randint(-127, 128, (129, 4112), dtype=torch.int8, device=GPU)
    scale, out = torch.rand(129, device=GPU), torch.empty(129, 4112, device=GPU, dtype=dtype)
    ARITHMETICS["int8"].dequantize([codes, scale], out)
    assert torch.equal(out, (codes * scale[:, None]).to(dtype))


@pytest.mark.parametrize("base", BASES)
def test_rows_that_are_none_or_not_finite(base):
    layer = torch.nn.Linear(64, 48, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    form = implementation(BASE_PRECISIONS[base].implementation)(layer, torch.bfloat16)
    check_spoilt_rows(form, GPU, torch.bfloat16)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("checkpointing", ["off", "blocks", "selective"])
def test_a_captured_step_is_the_eager_one(base, checkpointing, llama, side_stream):  # noqa: F811
    changes = {"base_precision": base, "gradient_checkpointing": checkpointing}
    given = llama, "adalora", "ivon", "snr", "bf16"
    torch.use_deterministic_algorithms(True)
    try:
        eager = trained(*given, **changes)
        captured = trained(*given, lambda noise: GraphRunner([noise]), **changes)
    finally:
        torch.use_deterministic_algorithms(False)
    assert captured.runner.failure is None
    assert len(captured.runner._graphs) > 1
    bank, other = eager.network.bank, captured.network.bank
    for name, value in bank.tensors().items():
        assert torch.equal(value, other.tensors()[name]), name


@pytest.mark.parametrize("base", BASES)
def test_the_step_never_waits(base, llama, strict):  # noqa: F811
    step = make_step(
        llama, "ivon", "snr", labels=CAUSAL, device="cuda", precision="bf16", base_precision=base
    )
    feed = Feed(token_rows(LENGTHS), GPU)
    step(0, [feed.batch(torch.arange(8))])
    torch.cuda.set_sync_debug_mode("error")
    for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [feed.batch(torch.arange(8) + t % 8)])
    torch.cuda.set_sync_debug_mode("default")
    assert step.bad_step() is None


@pytest.mark.filterwarnings("default")  # the compiler's own, which differ from release to release
@pytest.mark.parametrize(
    ("base", "checkpointing"),
    [("fp8", "off"), ("nf4", "off"), ("nf4", "blocks"), ("nf4", "selective")],
)
def test_a_compiled_step_is_captured(base, checkpointing, llama, side_stream):  # noqa: F811
    changes = {"base_precision": base, "gradient_checkpointing": checkpointing}
    given = llama, "adalora", "adamw", "magnitude", "bf16"
    eager = trained(*given, **changes)
    compiled = trained(*given, lambda noise: GraphRunner([noise]), compiled=True, **changes)
    assert compiled.runner.failure is None
    assert compiled.means().loss == pytest.approx(eager.means().loss, rel=2e-2)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_fp32_follows_the_cpu(base, llama):  # noqa: F811
    """The codes are those of the CPU, but for a few; fp8 numbers round otherwise there."""
    found = []
    for device in ("cpu", "cuda"):
        step = make_step(
            llama, "adamw", "magnitude", labels=CAUSAL, device=device, base_precision=base
        )
        feed = Feed(token_rows(LENGTHS), torch.device(device))
        for t in range(3):
            step(t, [feed.batch(torch.arange(8))])
        found.append((step.means().loss, step.network.bank.mean.cpu()))
    (loss, mean), (other_loss, other_mean) = found
    assert other_loss == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(other_mean, mean, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("base", BASES)
def test_a_run_and_its_evaluation(base, options, tmp_path):  # noqa: F811
    run = train(options(tmp_path, precision="bf16", base_precision=base))
    expected = run.read_json(run.result)["best_at_budget"]["metrics"]["validation"]["nll"]
    found = evaluated(run.path, device="cuda")["metrics"]["validation"]["nll"]
    assert found == pytest.approx(expected, abs=1e-2)
