"""Gates and gated layers against a float64 twin of blora.md, a loop over modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayeslora_cli.methods.blora.gates import GateParameters, GatePlan, sampled
from bayeslora_cli.methods.blora.layer import gated_linear
from bayeslora_cli.methods.blora.operands import FIXED, FLOAT, LEARNING, OperandPublisher
from bayeslora_cli.methods.blora.range_calibration import FIRST_SINGULAR_RANGE, calibrate
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.published_factors import PublishedFactors
from tests.models.kernels.test_quantize import twin

SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5)]
LADDER = (2, 4, 8, 16)


class Model(nn.Module):
    """Adapted layers one after the other, a nonlinearity between them."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs):
        return sum(
            (layer(x).sin() * w).sum() for layer, (x, w) in zip(self.layers, inputs, strict=True)
        )


def build(*, bits=True, ranks=True, base=False, ladder=LADDER, rank=3, seed=0):
    """A model with trained-looking parameters."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers = [gated_linear(DenseLinear(nn.Linear(w, h)), rank, 7.0, generator) for w, h in SHAPES]
    for layer in layers:
        layer.base_layer.requires_grad_(False)
        nn.init.normal_(layer.lora_A, std=0.4, generator=generator)
        nn.init.normal_(layer.lora_B, std=0.4, generator=generator)
        nn.init.normal_(layer.lora_E, std=0.4, generator=generator)
    named = {f"m{i}": layer for i, layer in enumerate(layers)}
    matrices = [Matrix(name=n, a=m.lora_A, b=m.lora_B, e=m.lora_E) for n, m in named.items()]
    plan = GatePlan(bits, ranks, ladder, base)
    others = plan.parameters(len(layers), rank, torch.device("cpu"))
    bank = AdapterBank(matrices, others, posterior=False)
    bank.factors = PublishedFactors(bank, layers, torch.float32)
    parameters = GateParameters(plan, bank.layout)
    gates = OperandPublisher(parameters, bank, named, torch.float32)
    for p in (gates.bits, gates.ranks):
        if p is not None:
            p.data.normal_(mean=0.5, std=2.0, generator=generator)
    if gates.ranges is not None:
        gates.ranges.data.uniform_(-1.0, 0.7, generator=generator)
        gates.signed[:, gates.plan.operands.index("x")] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    return Model(layers), gates, bank


def inputs_of(seed=3, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, w, generator=generator), torch.randn(rows, h, generator=generator))
        for w, h in SHAPES
    ]


def slow(gates, layers, inputs, *, open_of, names):
    """The loss, float64: blora.md's module, one at a time; `names`: operands that are quantized."""
    total = 0
    places = {name: i for i, name in enumerate(gates.plan.operands)}
    leaves = {}

    def leaf(name, value):
        return leaves.setdefault(name, value.detach().double().requires_grad_())

    for index, (layer, (x, w)) in enumerate(zip(layers, inputs, strict=True)):

        def q(name, value, index=index):
            if name not in names:
                return value
            place = places[name]
            beta = leaf("ranges", gates.ranges)[index, place].exp()
            z = open_of("bits", leaf)[index, place].unbind() if gates.bits is not None else ()
            signed = bool(gates.signed[index, place])
            return twin(value, beta, signed, z, gates.plan.ladder)

        a, e, b = (leaf(f"{p}{index}", getattr(layer, f"lora_{p}")) for p in "AEB")
        g = [torch.ones((), dtype=torch.float64)]
        if gates.ranks is not None:
            for z in open_of("ranks", leaf)[index].unbind():
                g.append(g[-1] * z)
        x = x.double()
        taken = q("x", x)
        weight = layer.base_layer.weight.double()
        out = (taken if "W" in names else x) @ q("W", weight).t() + layer.base_layer.bias.double()
        h = q("h", q("a", taken @ q("A", a).t()) * q("E", e[:, 0]) * torch.stack(g))
        out = out + layer.scale * h @ q("B", b).t()
        total = total + (out.sin() * w.double()).sum()
    total.backward()
    return total.detach(), {name: value.grad for name, value in leaves.items()}


def compare(model, gates, bank, *, open_of, training):
    data = inputs_of()
    bank.zero_local()
    gates.publish_operands(training=training)
    loss = model(data)
    loss.backward()
    bank.collect()
    expected, grads = slow(gates, model.layers, data, open_of=open_of, names=gates.quantized)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=2e-5, atol=2e-5)
    for name, gradient in grads.items():
        own = {"bits": "gates.bits", "ranks": "gates.ranks", "ranges": "ranges"}.get(
            name, f"m{name[1:]}.lora_{name[0]}"
        )
        got = bank.segments[own].view(bank.local).double()
        if gradient is None:
            gradient = torch.zeros_like(got)
        # fp32, where a code may differ at 16 bits
        scale = gradient.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(got / scale, gradient / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("bits", "ranks", "base", "ladder", "rank"),
    [
        (True, True, False, LADDER, 3),
        (True, True, True, LADDER, 3),
        (True, False, False, (2, 4), 2),
        (False, True, False, LADDER, 4),
        (True, True, False, (8,), 3),
        (True, True, False, (4, 8), 1),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_learning_passes_are_the_twins(bits, ranks, base, ladder, rank, seed):
    model, gates, bank = build(
        bits=bits, ranks=ranks, base=base, ladder=ladder, rank=rank, seed=seed
    )
    gates.mode = LEARNING
    gates.generator = torch.Generator().manual_seed(5)
    again = torch.Generator().manual_seed(5)
    numbers = torch.zeros_like(gates._u).uniform_(1e-6, 1 - 1e-6, generator=again)
    count = 0 if gates.bits is None else gates.bits.numel()

    def open_of(name, leaf):
        own = gates.bits if name == "bits" else gates.ranks
        u = numbers[:count] if name == "bits" else numbers[count:]
        return sampled(leaf(name, own), u.view(own.shape).double())

    compare(model, gates, bank, open_of=open_of, training=True)
    used = [p for p in (gates.bits, gates.ranks) if p is not None and p.numel()]
    assert all(bool(p.grad.abs().max() > 0) for p in used)


@pytest.mark.parametrize("base", [False, True])
def test_thresholded_passes_are_the_twins(base):
    """In evaluation always, in training in the fixed phase; the logits get no gradient there."""
    model, gates, bank = build(base=base)

    def open_of(name, leaf):
        own = gates.bits if name == "bits" else gates.ranks
        return (own > -0.9353).double()

    gates.mode = LEARNING
    compare(model, gates, bank, open_of=open_of, training=False)
    gates.mode = FIXED
    compare(model, gates, bank, open_of=open_of, training=True)
    assert float(gates.bits.grad.abs().max()) == float(gates.ranks.grad.abs().max()) == 0


@pytest.mark.parametrize("base", [False, True])
def test_a_mixture_in_both_phases_is_the_same_to_the_bit(base):
    """Widths that are closed add zeros: a GPU's blocks are compiled once for both phases."""
    found = []
    for mixture in (False, True):
        model, gates, bank = build(base=base)
        gates.mode, gates.mixture_of_widths = FIXED, mixture
        bank.zero_local()
        gates.publish_operands(training=True)
        widths = gates.layers[0].operands.of_a.learned.shape[1] - 1
        assert widths == (len(LADDER) if mixture else 1)
        loss = model(inputs_of())
        loss.backward()
        bank.collect()
        found.append((loss.detach(), bank.local.clone()))
    (loss, gradient), (other_loss, other_gradient) = found
    assert torch.equal(loss, other_loss)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", [LEARNING, FIXED])
def test_ranks_that_fill_up_rows_change_nothing(mode):
    """As on a GPU: values and gradients, those of the quantizers after A and E included."""
    found = []
    for rank in (3, 8):
        model, gates, bank = build()
        gates.mode, gates.computed_rank = mode, rank
        gates.generator = torch.Generator().manual_seed(5)
        bank.zero_local()
        gates.publish_operands(training=True)
        assert gates.layers[0].operands.b.shape[1] == rank
        loss = model(inputs_of())
        loss.backward()
        bank.collect()
        found.append((loss.detach(), bank.local.clone()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)


def test_the_float_phase_is_the_plain_adapter():
    model, gates, bank = build()
    gates.mode = FLOAT
    bank.publish()
    gates.publish_operands(training=True)
    for layer, (x, _) in zip(model.layers, inputs_of(), strict=True):
        delta = layer.delta_weight(layer.lora_A, layer.lora_E, layer.lora_B)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ delta.t())


def test_pruned_is_masked():
    """A closed gate is as if its rank were not there, and all behind it."""
    model, gates, bank = build(rank=4)
    gates.ranks.data.fill_(5.0)
    gates.ranks.data[:, 1] = -5.0
    gates.mode = FIXED
    assert gates.parameters.mask(bank.theta).tolist() == [[1, 1, 0, 0]] * 4
    data = inputs_of()
    with torch.no_grad():
        gates.publish_operands(training=False)
        whole = [layer(x) for layer, (x, _) in zip(model.layers, data, strict=True)]
        for layer in model.layers:  # what is there is quantized alike: by the same ranges
            o = layer.operands
            layer.operands = o._replace(a=o.a[:2], e=o.e[:2], b=o.b[:, :2])
        pruned = [layer(x) for layer, (x, _) in zip(model.layers, data, strict=True)]
    for a, b in zip(whole, pruned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_dequantized_parameters_are_what_the_layers_take():
    model, gates, bank = build(base=True)
    gates.mode = FIXED
    gates.publish_operands(training=False)
    flat = gates.effective(bank.mean)
    base = gates.effective_base(bank.mean)
    for index, layer in enumerate(model.layers):
        o, name = layer.operands, f"m{index}"
        assert torch.equal(o.a, bank.segments[f"{name}.lora_A"].view(flat))
        e = bank.segments[f"{name}.lora_E"].view(flat)[:, 0]
        assert torch.equal(o.e, e * gates.parameters.mask(flat)[index])
        b = bank.segments[f"{name}.lora_B"].view(flat)
        assert torch.equal(o.b, b * layer.scale)
        x = torch.randn(3, layer.lora_A.shape[1])
        with torch.no_grad():
            plain = torch.nn.functional.linear(x, base[name], layer.base_layer.bias)
            found = layer._base(x, x, o)
        assert torch.equal(plain, found)


@pytest.mark.parametrize("base", [False, True])
def test_first_ranges(base):
    """The largest elements; x that is never negative gets [0, beta]; E of 0 counts as 0.02."""
    model, gates, bank = build(base=base)
    gates.signed.data.fill_(1)
    bank.singular_values(bank.mean)[0] = 0.0
    gates.mode = FLOAT
    for layer in model.layers:
        layer.observed_extremes = []
    data = inputs_of()
    data[2] = (data[2][0].abs(), data[2][1])
    gates.publish_operands(training=False)
    model(data)
    extremes = torch.stack([layer.extremes() for layer in model.layers])
    calibrate(gates, bank.mean, extremes, torch.ones((), dtype=torch.bool))
    for index, (layer, (x, _)) in enumerate(zip(model.layers, data, strict=True)):
        a = x @ layer.lora_A.t()
        tensors = {
            "A": layer.lora_A, "B": layer.lora_B, "x": x, "a": a, "h": a * layer.lora_E[:, 0],
            "E": layer.lora_E if index else torch.tensor(FIRST_SINGULAR_RANGE),
            "W": layer.base_layer.weight,
        }  # fmt: skip
        for place, name in enumerate(gates.plan.operands):
            expected = tensors[name].abs().max().clamp_min(1e-6)
            torch.testing.assert_close(gates.ranges[index, place].exp(), expected)
            assert bool(gates.signed[index, place]) == (name != "x" or index != 2)
    before = gates.ranges.clone()
    calibrate(gates, bank.mean, extremes * float("nan"), torch.ones((), dtype=torch.bool))
    calibrate(gates, bank.mean, extremes * 2, torch.zeros((), dtype=torch.bool))
    assert torch.equal(gates.ranges, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_thresholds_follow_the_leading_open_gates(seed):
    _, gates, bank = build(seed=seed % 7, rank=5)
    generator = torch.Generator().manual_seed(seed)
    gates.bits.data.normal_(std=2.0, generator=generator)
    gates.ranks.data.normal_(std=2.0, generator=generator)
    levels, mask = gates.parameters.levels(bank.mean), gates.parameters.mask(bank.mean)
    for phi, level in zip(
        gates.bits.flatten(0, 1).tolist(), levels.flatten().tolist(), strict=True
    ):
        run = [p > -0.9353 for p in phi]
        assert level == (run.index(False) if False in run else len(run))
    for phi, kept in zip(gates.ranks.tolist(), mask.tolist(), strict=True):
        run = [True, *(p > -0.9353 for p in phi)]
        rank = run.index(False) if False in run else len(run)
        assert kept == [1.0] * rank + [0.0] * (5 - rank)
