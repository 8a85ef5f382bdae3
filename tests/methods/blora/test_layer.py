"""Layers that see the same input, computed together as on a GPU: another operator, same results."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.data.batching import Feed
from bayeslora_cli.methods import building
from bayeslora_cli.methods.blora import layer
from bayeslora_cli.methods.blora.layer import GatedJoint
from bayeslora_cli.methods.blora.range_calibration import measure
from tests.methods.test_packed_rows import text_rows
from tests.models.kernels.gated.test_gated_linear import plain
from tests.support.decoders import CAUSAL, save_decoder, token_rows
from tests.training.test_step import make_step


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("qwen2"), "qwen2", num_hidden_layers=2)


def outcome(model, mode, **changes):
    """Loss and gradients of a pass in the learning or the fixed phase."""
    step = make_step(model, "adamw", None, method="blora", labels=CAUSAL, init_rank=3, **changes)
    bank, operands = step.network.bank, step.network.operands
    draws = torch.Generator().manual_seed(0)
    bank.mean.add_(torch.empty(bank.size).normal_(std=0.3, generator=draws))
    operands.mode, operands.generator = mode, torch.Generator().manual_seed(1)
    batch = Feed(token_rows(), torch.device("cpu")).batch(torch.arange(6))
    batch.pop("count")
    loss = step._backward(batch)
    bank.collect()
    return loss, bank.local.clone(), step.network


def together(monkeypatch):
    """Take the operator for several layers, with torch's operators inside; count the calls."""
    calls = []

    def product(rows, weight, bias, *rest):
        calls.append(len(rest[-1]))
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return plain(rows, weight, bias, *rest)

    monkeypatch.setattr(layer, "is_fused", lambda _: True)
    monkeypatch.setattr(layer, "gated_product", product)
    monkeypatch.setattr(layer, "gated_base_product", product)
    return calls


@pytest.mark.parametrize("mode", ["learning", "fixed"])
@pytest.mark.parametrize("base", [False, True])
def test_joints_are_their_layers(mode, base, model, monkeypatch):
    loss, gradient, network = outcome(model, mode, quantize_base=base)
    assert [len(joint.layers) for joint in network.joints] == [3, 2, 3, 2]
    assert all(type(joint) is GatedJoint for joint in network.joints)
    calls = together(monkeypatch)
    other, found, _ = outcome(model, mode, quantize_base=base)
    assert sorted(calls) == [1, 1, 1, 1, 2, 2, 3, 3]
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)


def test_layers_that_no_operator_takes_together(model, monkeypatch):
    """Those whose ranks have gates, without quantizers."""
    loss, gradient, _ = outcome(model, "learning", blora_mode="rank")
    calls = together(monkeypatch)
    other, found, network = outcome(model, "learning", blora_mode="rank")
    assert calls == []
    assert all(joint.operands is None for joint in network.joints)
    assert torch.equal(other, loss)
    assert torch.equal(found, gradient)


def encoder_outcome(model, mode, **changes):
    """Extremes of the layers' inputs, loss and gradients of a pass of padded rows.

    Gates are half open.
    """
    step = make_step(model, "adamw", None, method="blora", init_rank=3, **changes)
    bank, operands = step.network.bank, step.network.operands
    draws = torch.Generator().manual_seed(0)
    bank.mean.add_(torch.empty(bank.size).normal_(std=0.3, generator=draws).to(bank.mean))
    device = bank.mean.device
    if operands.bits is not None:
        operands.bits.detach().copy_(torch.empty(operands.bits.shape).normal_(generator=draws))
    operands.mode, operands.generator = mode, torch.Generator(device).manual_seed(1)
    batch = {k: v.to(device) for k, v in text_rows().batch(torch.arange(5)).items()}
    batch["labels"] = batch["labels"] % 2
    extremes = measure(step.network, [batch])
    step.network.module.train()
    loss = step._backward(batch)
    bank.collect()
    return extremes, loss, bank.local.clone(), step.network


def on_a_gpu(monkeypatch):
    """Join layers as on a GPU."""
    joints, gpu = building._joints, torch.device("cuda")
    monkeypatch.setattr(building, "_joints", lambda module, _, **more: joints(module, gpu, **more))


def test_ranges_are_measured_in_bf16(backbone, monkeypatch):
    """There the layers of a joint are computed by themselves, by factors that are not published."""
    on_a_gpu(monkeypatch)
    extremes, loss, _, network = encoder_outcome(backbone("deberta-v2"), "float", precision="bf16")
    assert len(network.joints) == 2
    assert extremes.isfinite().all()
    assert loss.isfinite()


@pytest.mark.parametrize("mode", ["float", "learning", "fixed"])
@pytest.mark.parametrize("changes", [{}, {"quantize_base": True}, {"blora_mode": "rank"}])
def test_the_joints_of_deberta_are_their_layers(mode, changes, backbone, monkeypatch):
    """On a GPU; a CPU keeps them apart. Ranges are of what each layer reads by itself."""
    model = backbone("deberta-v2")
    extremes, loss, gradient, network = encoder_outcome(model, mode, **changes)
    assert network.joints == ()
    calls = together(monkeypatch)
    on_a_gpu(monkeypatch)
    measured, other, found, network = encoder_outcome(model, mode, **changes)
    assert [len(joint.layers) for joint in network.joints] == [3, 3]
    taken = mode != "float" and "blora_mode" not in changes
    assert calls.count(3) == 2 * taken
    assert torch.equal(measured, extremes)
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)
