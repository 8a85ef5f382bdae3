"""Forms of `AdaptedLinear`, among them two of this file, against the dense form.

Written as somebody would who adds a form: nothing of the package knows of the two here.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayeslora_cli.export.formats.merged_model import merge
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.dense import DenseLinear
from tests.support.networks import batch_of, logits
from tests.training import test_step
from tests.training.test_step import T_FINAL, TOTAL, batches, make_step


class Frozen(AdaptedLinear):
    """What the forms of this file have in common: a replaced layer, and a bias as a buffer."""

    def __init__(self, layer):
        super().__init__()
        self.transposed = not isinstance(layer, nn.Linear)
        self.layer = (layer,)
        weight = self.oriented(layer.weight.detach())
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self.store(weight)

    def forward(self, rows):
        return F.linear(rows, self.dense().to(rows.dtype), self.bias)

    def plain(self):
        (layer,) = self.layer
        layer.weight = nn.Parameter(self.oriented(self.dense()).clone(), requires_grad=False)
        return layer


class Int8Linear(Frozen):
    """Integer codes of 8 bits and a scale per row: a quarter of fp32's memory."""

    def store(self, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale.clamp_min(1e-12))
        self.register_buffer("codes", (weight / self.scale).round().to(torch.int8))

    def product(self, rows, down, up):
        return self(rows) + F.linear(F.linear(rows, down), up)

    def dense(self):
        return self.codes * self.scale

    def replace_dense(self, weight):
        self.scale.copy_(weight.abs().amax(1, keepdim=True) / 127).clamp_min_(1e-12)
        self.codes.copy_((weight / self.scale).round())


class JointProduct(torch.autograd.Function):
    """y and h in one product with [W; down]."""

    @staticmethod
    def forward(ctx, rows, down, up, joint, width, height):
        both = rows @ joint[:, :width].t()  # (n, out + r)
        h = both[:, height:]
        ctx.save_for_backward(rows, h, up, joint)
        return both[:, :height] + h @ up.t()

    @staticmethod
    def backward(ctx, grad):
        rows, h, up, joint = ctx.saved_tensors
        to_h = grad @ up
        of_rows = torch.cat((grad, to_h), 1) @ joint[:, : rows.shape[1]]
        return of_rows, to_h.t() @ rows, grad.t() @ h, None, None, None


class JointBuffer(Frozen):
    """One buffer [[W, up], [down, 0]]: the factors are published into it."""

    def store(self, weight):
        self.register_buffer("joint", weight)

    def product(self, rows, down, up):
        assert down.data_ptr() == self.joint[self.out_features :].data_ptr(), "published elsewhere"
        out = JointProduct.apply(rows, down, up, self.joint, self.in_features, self.out_features)
        return out if self.bias is None else out + self.bias

    def dense(self):
        return self.joint[: self.out_features, : self.in_features]

    def replace_dense(self, weight):
        self.dense().copy_(weight)

    @classmethod
    def place_factors(cls, forms, rank, dtype, device):
        height, width = forms[0].out_features, forms[0].in_features
        whole = torch.zeros(len(forms), height + rank, width + rank, dtype=dtype, device=device)
        for form, own in zip(forms, whole, strict=True):
            own[:height, :width] = form.dense()
            form.joint = own
        return whole[:, height:, :width], whole[:, :height, width:]


FORMS = {"int8": Int8Linear, "joint buffer": JointBuffer}
OWN = {"int8": "codes", "joint buffer": "joint"}


def steps(kind, form, monkeypatch, method="adalora", optimizer="adamw", **changes):
    """A step on a form, and one on the dense form with the same weights."""
    criterion = "sensitivity" if method == "adalora" else None
    found = []
    for one in (FORMS[form], DenseLinear):
        monkeypatch.setattr(test_step, "build_network", partial(build_network, form=one))
        found.append(make_step(kind, optimizer, criterion, method=method, **changes))
    ours, dense = (step.network for step in found)
    for name, layer in ours.adapters.items():
        assert hasattr(layer.base_layer, OWN[form])
        dense.adapters[name].base_layer.replace_dense(layer.base_layer.dense())
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_gradients_are_those_of_the_dense_form(form, kind, backbone, monkeypatch):
    """Of A, E, B and the head; only the dense form joins DeBERTa's q, k and v."""
    ours, dense = steps(backbone(kind), form, monkeypatch)
    generator = torch.Generator().manual_seed(1)
    moved = torch.empty(ours.network.bank.size).normal_(std=0.1, generator=generator)
    found = []
    for network in (ours.network, dense.network):
        bank = network.bank
        bank.mean.add_(moved)
        bank.publish()
        bank.zero_local()
        network.module.eval()
        out = network.logits(batch_of())
        out.square().sum().backward()
        bank.collect()
        found.append((out.detach(), bank.local.clone()))
    (out, gradient), (other_out, other_gradient) = found
    torch.testing.assert_close(out, other_out, rtol=1e-4, atol=1e-5)
    assert (gradient - other_gradient).norm() <= 1e-5 * other_gradient.norm() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("method", "optimizer"), [("adalora", "adamw"), ("adalora", "ivon"), ("lora", "adamw"),
                              ("blora", "adamw")]
)  # fmt: skip
def test_training_goes_as_on_the_dense_form(form, method, optimizer, backbone, monkeypatch):
    """Every method and optimizer, to the end of the schedule, and merged."""
    ours, dense = steps(backbone("bert"), form, monkeypatch, method, optimizer)
    before = [layer.base_layer.dense().clone() for layer in ours.network.adapters.values()]
    data, losses = batches(), []
    for t in range(TOTAL):
        for step in (ours, dense):
            step(t, [data[t]])
        if t in (9, TOTAL - T_FINAL, TOTAL - 1):
            losses.append([step.means().loss for step in (ours, dense)])
            assert losses[-1][0] == pytest.approx(losses[-1][1], rel=2e-3)
    assert losses[-1][0] < losses[0][0]
    assert torch.equal(ours.network.bank.mask, dense.network.bank.mask)
    for layer, weight in zip(ours.network.adapters.values(), before, strict=True):
        assert torch.equal(layer.base_layer.dense(), weight), "the frozen weight has moved"
    expected = logits(ours.network, batch_of())
    bank = ours.network.bank
    if method != "blora":  # whose activations a merged model does not quantize
        merged = merge(ours.network, bank.mean, bank.mask)
        with torch.no_grad():
            torch.testing.assert_close(merged(**batch_of()).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_drawn_weights_are_kept_within_the_forms_precision(form, backbone, monkeypatch):
    """DeBERTa's pooler, which its checkpoint lacks: another process's takes its place."""
    ours, _ = steps(backbone("deberta-v2"), form, monkeypatch)
    network = ours.network
    (name,) = (n for n in network.drawn if n.endswith("dense.weight"))
    value = torch.randn_like(network.drawn[name])
    network.set_drawn(name, value)
    dense = network.adapters["pooler.dense"].base_layer.dense()
    step = value.abs().amax(1, keepdim=True) / 127
    assert bool(((dense - value).abs() <= (0.51 * step if form == "int8" else 0)).all())


def test_the_dense_form_shares_the_layers_own_parameters():
    layer = nn.Linear(3, 5)
    form = DenseLinear(layer)
    assert form.plain() is layer
    assert list(dict(form.named_parameters())) == ["weight", "bias"]
    form.replace_dense(torch.ones(5, 3))
    assert bool((layer.weight == 1).all())
    assert form.dense().data_ptr() == layer.weight.data_ptr()
