"""Packed rows of encoders on a CUDA device: `pytest -m gpu tests/gpu/test_packed_encoders.py`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from bayeslora_cli.data.packing import collate, token_batch
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.methods import building
from bayeslora_cli.methods.blora import layer
from tests.methods.blora.test_layer import encoder_outcome
from tests.methods.test_packed_rows import text_rows
from tests.support.objectives import TWO_CLASSES
from tests.training.test_step import T_FINAL, T_INIT, TOTAL, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("a_gpu"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
KINDS = ["bert", "deberta-v2"]


def batches(count, *, packed):
    """Rows in other orders and numbers, so that sizes differ from batch to batch."""
    rows, found = text_rows(), []
    generator = torch.Generator().manual_seed(1)
    for t in range(count):
        indices = torch.randperm(len(rows), generator=generator)[: 4 + t % 3]
        batch = token_batch(rows, indices, 0, GPU) if packed else rows.batch(indices)
        found.append({name: value.to(GPU) for name, value in batch.items()})
        found[-1]["labels"] = found[-1]["labels"] % len(TWO_CLASSES.classes)
    return found


def trained(model, *, packed, runner=lambda noise: run_eagerly, steps=12, ahead=False, **options):
    step = make_step(
        model, "ivon", "snr", device="cuda", packing="on" if packed else "off", runner=runner,
        **options,
    )  # fmt: skip
    assert step.network.packed == packed
    step.network.module.train()
    torch.manual_seed(0)
    if ahead:
        with compiled_ahead():
            step.take_part(batches(1, packed=packed)[0])
    for t, batch in enumerate(batches(steps, packed=packed)):
        step(t, [batch])
    assert step.bad_step() is None
    return step.network.bank.mean.clone()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_steps_are_padded_steps(kind, backbone):
    """In fp32, without dropout."""
    model = backbone(kind)
    packed, padded = (trained(model, packed=both) for both in (True, False))
    torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-4)


def test_blora_joins_what_it_computes_apart(backbone, monkeypatch):
    """DeBERTa's queries, keys and values, in the learning phase, without dropout."""
    model, means = backbone("deberta-v2"), []
    options = {"device": "cuda", "method": "blora", "packing": "on"}
    joints = building._joints
    for place in (GPU, CPU):
        monkeypatch.setattr(
            building, "_joints", lambda module, _, p=place, **more: joints(module, p, **more)
        )
        step = make_step(model, "adamw", None, **options)
        assert len(step.network.joints) == 2 * (place == GPU)
        step.network.module.train()
        for t, batch in enumerate(batches(T_INIT + 6, packed=True)):
            step(t, [batch])
        assert step.bad_step() is None
        means.append(step.network.bank.mean.clone())
    torch.testing.assert_close(*means, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("base", [False, True])
def test_gradients_of_blora_are_those_of_torchs_operators(base, backbone, monkeypatch):
    """Of one pass in fp32, with gates half open: of joints, and of layers one by one, too."""
    options = {"device": "cuda", "quantize_base": base}
    joined, apart, plain = "joined", "apart", "plain"
    found, joints = {}, building._joints
    for way in (joined, apart, plain):
        if way == apart:
            monkeypatch.setattr(
                building, "_joints", lambda module, _, **more: joints(module, CPU, **more)
            )
        if way == plain:
            monkeypatch.setattr(layer, "is_fused", lambda _: False)
        _, loss, gradient, network = encoder_outcome(backbone("deberta-v2"), "learning", **options)
        assert len(network.joints) == 2 * (way == joined)
        found[way] = loss, gradient
    for way in (joined, apart):
        for value, truth in zip(found[way], found[plain], strict=True):
            atol = 1e-4 * float(truth.abs().max())
            torch.testing.assert_close(value, truth, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_are_eager_steps(kind, precision, backbone):
    """To the bit, with dropout."""
    model, options = backbone(kind, dropout=0.1), {"precision": precision, "packed": True}
    eager = trained(model, **options)
    torch.cuda.set_stream(torch.cuda.Stream())
    captured = trained(model, runner=lambda noise: GraphRunner([noise]), **options)
    assert torch.equal(captured, eager)


@contextmanager
def compiled_ahead():
    """Compile kernels side by side, those of attention anew, which must all be there at the end."""
    from bayeslora_cli.models.kernels.row_attention import backward_triton, forward_triton
    from bayeslora_cli.models.kernels.side_by_side_triton import compiled_side_by_side

    kernels = forward_triton.attend, backward_triton.to_queries, backward_triton.to_keys
    for kernel in kernels:
        kernel.device_caches.clear()
    with compiled_side_by_side():
        yield
    for kernel in kernels:
        (caches,) = kernel.device_caches.values()
        assert len(caches[0]) == 1
        assert not any(hasattr(found, "result") for found in caches[0].values())


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_compiled_side_by_side(kind, backbone):
    """The pass draws and changes nothing; with dropout."""
    model = backbone(kind, dropout=0.1)
    usual, ahead = (trained(model, packed=True, ahead=both) for both in (False, True))
    assert torch.equal(usual, ahead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_forward_pass_on_packed_rows_never_waits(kind, precision, backbone):
    step = make_step(
        backbone(kind), "ivon", "snr", device="cuda", precision=precision, packing="on"
    )
    data = batches(TOTAL, packed=True)
    step(0, [data[0]])
    torch.cuda.set_sync_debug_mode("error")
    for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [data[t]])
    torch.cuda.set_sync_debug_mode("default")
    assert step.bad_step() is None


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_in_bf16(kind, backbone):
    """By torch's kernel for rows of any length where there is no dropout."""
    rows, found = text_rows(), {}
    for name in ("fp32", "bf16"):
        step = make_step(backbone(kind), "ivon", "snr", device="cuda", precision=name, packing="on")
        step.network.module.eval()
        batch = collate(rows, torch.arange(len(rows)), 0, fixed=True)
        with torch.no_grad():
            found[name] = step.network.logits({n: x.cuda() for n, x in batch.items()})
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=3e-2, atol=3e-2)
