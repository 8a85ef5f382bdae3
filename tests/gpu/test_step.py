"""The same step on a CUDA device: `pytest -m gpu tests/gpu/test_step.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.methods.blora.layer import GatedLinear, Operands
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.kernels import quantize
from bayeslora_cli.training.step import TrainStep
from tests.training.test_step import METHODS, T_FINAL, T_INIT, TOTAL, batches, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("a_gpu"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA synchronisations are errors in all of the step but the backbone's forward pass.

    What the backbone does is not ours: BERT's attention asks whether its mask is all ones.
    """
    original = Network.logits

    def logits(self, batch):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return original(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Network, "logits", logits)
    yield
    torch.cuda.set_sync_debug_mode("default")


def to_gpu(batch):
    return {k: v.cuda() for k, v in batch.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_the_step_never_waits(method, optimizer, criterion, precision, backbone, strict):
    step = make_step(
        backbone("bert"), optimizer, criterion, method=method, device="cuda", precision=precision
    )
    data = [to_gpu(b) for b in batches()]
    step(0, [data[0]])
    torch.cuda.set_sync_debug_mode("error")
    for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [data[t]])
    torch.cuda.set_sync_debug_mode("default")
    assert step.bad_step() is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ladder", [(2, 4, 8, 16), (8,)])
@pytest.mark.parametrize(("rows", "size"), [(1, 7), (1, 2**17 + 3), (5, 9000)])
def test_fused_quantizers_are_torchs(rows, size, ladder, kind, monkeypatch):
    """As far as rounding goes; a NaN is not lost."""
    assert quantize.HAS_TRITON
    generator = torch.Generator("cuda").manual_seed(0)
    data = torch.randn(2, rows, size, generator=generator, device="cuda").to(kind)
    log_range = torch.randn(rows, generator=generator, device="cuda") * 0.3
    signed = torch.arange(rows, device="cuda").remainder(2).float()
    divisors = torch.tensor(quantize.intervals(ladder), device="cuda").float()
    shares = torch.rand(rows, len(ladder), generator=generator, device="cuda").softmax(-1)
    by = quantize.quantizers(log_range, signed, divisors.expand(shares.shape), shares)
    found = []
    for fused in (True, False):
        monkeypatch.setattr(quantize, "HAS_TRITON", fused)
        x, learned = data[0].clone().requires_grad_(), by.learned.clone().requires_grad_()
        out = quantize.quantize(x, quantize.Quantizers(learned, by.constants))
        out.backward(data[1])
        found.append((out.detach(), x.grad, learned.grad))
    for a, b in list(zip(*found, strict=True))[:2]:
        torch.testing.assert_close(a, b, rtol=1e-6 if kind == torch.float32 else 1e-2, atol=1e-6)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-2)
    monkeypatch.setattr(quantize, "HAS_TRITON", True)
    bad = data[0].clone()
    bad[0, 0] = float("nan")
    assert bool(quantize.quantize(bad, by)[0, 0].isnan())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ladder", [(2, 4, 8, 16), (8,)])
@pytest.mark.parametrize(("rows", "rank"), [(37, 3), (2048, 8), (513, 24), (130, 100)])
def test_a_fused_layer_is_torchs(rows, rank, ladder, kind, monkeypatch):
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, device="cuda")

    layer = GatedLinear(DenseLinear(torch.nn.Linear(200, 48)), rank, 1.0).to("cuda", kind)
    layer.requires_grad_(False)
    divisors = torch.tensor(quantize.intervals(ladder), device="cuda").float()
    leaves = [drawn(rows, 200).to(kind), (drawn(rank, 200) / 14).to(kind), drawn(rank)]
    leaves.append(drawn(48, rank).to(kind))
    constants = []
    for signed in (1.0, 1.0, 0.0):
        log_range, sign = 0.1 * drawn(1), torch.full((1,), signed, device="cuda")
        shares = drawn(1, len(ladder)).softmax(-1)
        by = quantize.quantizers(log_range, sign, divisors.expand(shares.shape), shares)
        leaves.append(by.learned)
        constants.append(by.constants)
    gradient, found = drawn(rows, 48).to(kind), []
    for fused in (True, False):
        monkeypatch.setattr(quantize, "HAS_TRITON", fused)
        own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        by = [quantize.Quantizers(*pair) for pair in zip(own[4:], constants, strict=True)]
        layer.operands = Operands(*own[1:4], *by)
        assert (layer._whole(own[0], layer.operands) is not None) == fused
        out = layer(own[0])
        out.backward(gradient)
        found.append([out.detach(), *(leaf.grad for leaf in own)])
    # a sum in another order may be another code: of 16 bits often, and of little consequence
    bound = 1e-3 if kind == torch.float32 else 2e-2
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).float().norm() / theirs.float().norm()) < bound


@pytest.fixture
def side_stream() -> Iterator[None]:
    """Captures want another stream than the default one."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.cuda.synchronize()


def trained(step: TrainStep) -> dict[str, torch.Tensor]:
    """All that 60 steps on batches of three widths leave."""
    data = {width: [to_gpu(b) for b in batches(length=width)] for width in (6, 10, 17)}
    torch.manual_seed(3)
    for t in range(TOTAL):
        batch = data[(6, 10, 17)[t % 3]][t]
        step(t, [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}])
    parts = {"bank": step.network.bank, "optimizer": step.optimizer, "step": step}
    if step.allocator is not None:
        step.allocator.fetch_history()
        parts["allocator"] = step.allocator
    return {f"{n}/{k}": v for n, part in parts.items() for k, v in part.tensors().items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_a_captured_step_is_the_eager_one(
    method, optimizer, criterion, precision, dropout, backbone, side_stream
):
    """To the bit, two passes a step, dropout and noise included: a graph draws what they draw."""
    options = {"method": method, "device": "cuda", "precision": precision}
    options["samples"] = 2 if optimizer == "ivon" else 1
    eager = trained(make_step(backbone("bert", dropout), optimizer, criterion, **options))
    step = make_step(
        backbone("bert", dropout), optimizer, criterion, **options,
        runner=lambda noise: GraphRunner([noise]),
    )  # fmt: skip
    captured = trained(step)
    assert step.runner.failure is None
    assert len(step.runner._graphs) >= 6
    assert captured.keys() == eager.keys()
    assert [name for name in eager if not torch.equal(eager[name], captured[name])] == []


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("what", ["blocks", "selective"])
def test_recomputed_activations_draw_the_same(what, dropout, backbone, side_stream):
    """With --gradient-checkpointing, captured or not, and it is the run without it."""
    options = {"method": "lora", "device": "cuda"}
    usual = trained(make_step(backbone("bert", dropout), "adamw", None, **options))
    options["gradient_checkpointing"] = what
    eager = trained(make_step(backbone("bert", dropout), "adamw", None, **options))
    step = make_step(
        backbone("bert", dropout), "adamw", None, **options,
        runner=lambda noise: GraphRunner([noise]),
    )  # fmt: skip
    captured = trained(step)
    assert [name for name in usual if not torch.equal(usual[name], eager[name])] == []
    assert [name for name in eager if not torch.equal(eager[name], captured[name])] == []
    assert step.runner.failure is None, "so that it is as fast as it can be"


@pytest.mark.filterwarnings("default")  # the compiler's own, which differ from release to release
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("adalora", "ivon"), ("adalora", "adamw"), ("blora", "adamw"), ("blora", "ivon")],
)
def test_a_compiled_step_is_captured(method, optimizer, backbone, side_stream):
    """The first steps' losses as far as rounding goes, and to the end without a fault."""
    criterion = {"ivon": "snr", "adamw": "sensitivity"}[optimizer] if method == "adalora" else None
    steps = [
        make_step(
            backbone("bert"), optimizer, criterion, method=method, device="cuda",
            runner=lambda noise: GraphRunner([noise]),
        )
        for _ in range(2)
    ]  # fmt: skip
    compile_blocks(steps[1].network.module)
    steps[1].compile()
    data = [to_gpu(b) for b in batches()]
    for t in range(TOTAL):
        for step in steps:
            step(t, [data[t]])
        if t == T_INIT - 1:
            eager, compiled = (step.means().loss for step in steps)
            assert compiled == pytest.approx(eager, rel=1e-3)
    assert steps[1].runner.failure is None
    assert steps[1].bad_step() is None


def test_what_cannot_be_captured_runs_all_the_same(backbone, side_stream, monkeypatch, caplog):
    """A backbone that asks the device for a value: one notice, and the eager run's result."""
    original = Network.logits

    def curious(self, batch):
        assert int(batch["input_ids"].max()) >= 0
        return original(self, batch)

    monkeypatch.setattr(Network, "logits", curious)
    options = {"device": "cuda"}
    eager = trained(make_step(backbone("bert", 0.1), "ivon", "snr", **options))
    step = make_step(
        backbone("bert", 0.1), "ivon", "snr", **options, runner=lambda noise: GraphRunner([noise])
    )
    captured = trained(step)
    assert step.runner.failure is not None
    assert len([r for r in caplog.records if "not captured" in r.message]) == 1
    assert [name for name in eager if not torch.equal(eager[name], captured[name])] == []


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
def test_fp32_follows_the_cpu(kind, backbone):
    """AdamW and sensitivity, dropout off: losses and the final masks."""
    losses: dict[str, list[float]] = {}
    masks = {}
    for device in ("cpu", "cuda"):
        step: TrainStep = make_step(backbone(kind), "adamw", "sensitivity", device=device)
        losses[device] = []
        for t, batch in enumerate(batches()):
            step(t, [{k: v.to(device) for k, v in batch.items()}])
            losses[device].append(step.means().loss)
        masks[device] = step.network.bank.mask.cpu()
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
    assert torch.equal(masks["cpu"], masks["cuda"])
