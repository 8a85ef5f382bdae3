"""Phases, penalty and state of B-LoRA's training."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from bayeslora_cli.bayes.gaussian import FactorisedGaussian
from bayeslora_cli.methods.blora.gates import SHIFT
from bayeslora_cli.runs.rank_report import RankReport
from tests.support.evaluation import evaluated
from tests.support.faults import contents, differences
from tests.training.test_loop import lines, run_of
from tests.training.test_step import GATES, T_FINAL, T_INIT, TOTAL, batches, make_step

BLORA = {"method": "blora", "optimizer": "adamw", "criterion": None, "init_rank": 3}
# some gates close in twelve steps, and some do not
ACTIVE = {
    **BLORA, "gate_lr": 0.8, "lambda_quant": 3e-5, "lambda_rank": 3e-5, "max_steps": 20,
    "t_init": 4, "t_final": 4, "alpha": 256.0, "lr": 0.02,
}  # fmt: skip


def trained(backbone, optimizer="adamw", steps=T_INIT, **changes):
    step = make_step(backbone("bert"), optimizer, None, method="blora", **changes)
    data = batches()
    for t in range(steps):
        step(t, [data[t]])
    return step, data


# ---- phases


def test_ranges_are_measured_when_the_float_phase_ends(backbone):
    step, data = trained(backbone)
    bank, gates = step.network.bank, step.network.operands
    assert bool((gates.ranges == 0).all())
    assert gates.layers[0].operands is None
    before = {n: s.view(bank.mean).clone() for n, s in bank.segments.items()}
    state = torch.get_rng_state()
    step.allocator.before_passes(T_INIT, [data[T_INIT]], torch.tensor(True))
    assert torch.equal(torch.get_rng_state(), state)
    for name, segment in bank.segments.items():
        same = torch.equal(segment.view(bank.mean), before[name])
        assert same == (name != "ranges"), name
    for index, layer in enumerate(gates.layers):
        for place, name in enumerate("AB"):
            largest = before[f"{step.network.bank.matrices[index].name}.lora_{name}"].abs().max()
            torch.testing.assert_close(gates.ranges[index, place].exp(), largest)
        assert layer.observed_extremes is None
    assert step.network.module.training


def test_gates_rest_in_the_fixed_phase(backbone):
    """Logits, ranks and widths stay; weights and ranges go on."""
    first_fixed = TOTAL - T_FINAL
    step, data = trained(backbone, steps=first_fixed)
    bank, gates = step.network.bank, step.network.operands
    ranks = bank.mask.clone()
    assert int(ranks.sum()) < ranks.numel(), "the test needs gates that close"
    before = bank.mean.clone()
    for t in range(first_fixed, TOTAL):
        step(t, [data[t]])
    assert torch.equal(bank.mean[bank.parts["gate"]], before[bank.parts["gate"]])
    assert torch.equal(bank.mean[bank.parts["fixed"]], before[bank.parts["fixed"]])
    assert torch.equal(bank.mask, ranks)
    assert torch.equal(bank.mask, gates.parameters.mask(bank.mean))
    assert not torch.equal(bank.mean[bank.parts["range"]], before[bank.parts["range"]])
    assert step.means().penalty > 0  # of the steps before
    assert step.allocator.regularise() == 0


# ---- the penalty


@pytest.mark.parametrize("reg", ["const", "bop"])
@pytest.mark.parametrize("base", [False, True])
def test_the_penalty_is_the_specifications(reg, base, backbone):
    """Value and gradient in float64, a loop over matrices and quantizers."""
    step, _ = trained(backbone, steps=0, reg=reg, quantize_base=base)
    bank, gates = step.network.bank, step.network.operands
    generator = torch.Generator().manual_seed(1)
    for p in (gates.bits, gates.ranks):
        p.data.normal_(std=3, generator=generator)
    gates.mode = "learning"
    bank.zero_local()
    value = step.allocator.regularise()

    bits = gates.bits.detach().double().requires_grad_()
    ranks = gates.ranks.detach().double().requires_grad_()
    rank, macs = gates.rank, []
    for layer in gates.layers:
        i, o = layer.lora_A.shape[1], layer.lora_B.shape[0]
        own = {"A": i * rank, "x": i * rank, "E": rank, "a": rank, "B": o * rank, "h": o * rank}
        if base:
            own |= {"W": i * o, "x": i * rank + i * o}
        macs.append(own)
    most = max(m for own in macs for m in own.values())
    total = 0
    for index, own in enumerate(macs):
        for place, name in enumerate(gates.plan.operands):
            q4, q8, q16 = (bits[index, place] + SHIFT).sigmoid()
            w4, w8, w16 = (b * own[name] / most if reg == "bop" else 1 for b in (4, 8, 16))
            total = total + GATES["lambda_quant"] * (w4 * q4 + w8 * q4 * q8 + w16 * q4 * q8 * q16)
        q = (ranks[index] + SHIFT).sigmoid()
        reached = [q[: i + 1].prod() for i in range(len(q))]
        total = total + GATES["lambda_rank"] * sum(reached) / len(reached)
    total.backward()
    total = float(total.detach())
    assert float(value) == pytest.approx(total, rel=1e-5)
    for own, leaf in ((gates.bits, bits), (gates.ranks, ranks)):
        torch.testing.assert_close(own.grad.double(), leaf.grad, rtol=1e-4, atol=1e-10)
        assert bool((own.grad >= 0).all()), "the penalty must never open a gate"
    parts = step.allocator.facts(T_INIT)
    assert parts["penalty_quant"] + parts["penalty_rank"] == pytest.approx(total, rel=1e-5)


def test_no_penalty_before_and_after_learning(backbone):
    step, _ = trained(backbone, steps=0)
    for mode in ("float", "fixed"):
        step.network.operands.mode = mode
        step.network.bank.zero_local()
        assert step.allocator.regularise() == 0
        assert not bool(step.network.bank.local.any())


# ---- the step


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_what_the_layers_take_needs_no_value_of_the_device(optimizer, backbone, monkeypatch):
    step, _ = trained(backbone, optimizer, steps=0, quantize_base=True)

    def forbidden(*_, **__):
        raise AssertionError("a value was read back")

    for mode in ("learning", "fixed"):
        step.network.operands.mode = mode
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu"):
                patch.setattr(torch.Tensor, name, forbidden)
            step.network.operands.publish_operands(training=True)
            step.allocator.regularise()
            sum(o.e.sum() for o in (m.operands for m in step.network.operands.layers)).backward()


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_bad_step_freezes_gates_and_ranges(optimizer, backbone):
    step, data = trained(backbone, optimizer, steps=T_INIT + 4)
    parts = (step.network.bank, step.optimizer, step.allocator)
    before = [{n: v.clone() for n, v in part.tensors().items()} for part in parts]
    embedding = step.network.module.bert.embeddings.word_embeddings.weight
    clean = embedding.clone()
    embedding.data.fill_(float("nan"))
    step(T_INIT + 4, [data[0]])
    embedding.data.copy_(clean)
    for t in range(T_INIT + 5, T_INIT + 9):
        step(t, [data[t]])
    for part, old in zip(parts, before, strict=True):
        for name, value in part.tensors().items():
            assert torch.equal(value, old[name]), name
    assert step.bad_step() == T_INIT + 4


def test_ivon_samples_no_gate(backbone):
    """Gates and ranges are points to it: no noise, no sigma, no part of its update."""
    step, data = trained(backbone, "ivon", steps=T_INIT + 3)
    bank = step.network.bank
    step.optimizer.sample(masked=False)
    rest = slice(bank.weights.stop, bank.size)
    assert torch.equal(bank.theta[rest], bank.mean[rest])
    assert bool((bank.theta[bank.weights] != bank.mean[bank.weights]).any())
    assert bool((step.optimizer.sigma()[rest] == 0).all())
    assert bool((step.optimizer.tensors()["momentum"][rest] == 0).all())
    posterior = FactorisedGaussian(
        layout=bank.layout, mean=bank.mean, sigma=step.optimizer.sigma(), mask=bank.mask
    )
    theta = posterior.sample(torch.Generator().manual_seed(1), 1.0)
    assert torch.equal(theta[rest], bank.mean[rest])
    step(T_INIT + 3, [data[0]])


# ---- runs


@pytest.mark.parametrize("mode", ["both", "quant", "rank"])
def test_a_run_says_what_its_gates_did(mode, backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path, **ACTIVE, blora_mode=mode)
    result = run.read_result()
    report = RankReport.from_json(run.read_json(run.ranks), "ranks.json")
    assert report.criterion == "gates"
    quantized = mode != "rank"
    assert all((m.bits is not None) == quantized for m in report.matrices)
    history = lines(run.ranks_history)
    assert len(history) > 1, "the test needs gates that close"
    assert history[-1]["ranks"] == result["ranks"] == {m.name: m.rank for m in report.matrices}
    assert ("bits" in history[-1]) == quantized
    if quantized:
        bits = {m.name: m.bits for m in report.matrices}
        assert history[-1]["bits"] == result["bits"] == bits
        assert set(bits[report.matrices[0].name]) == {"A", "B", "E", "x", "a", "h"}
    last = [line for line in lines(run.metrics) if "loss" in line]
    assert [line["phase"] for line in last][:1] == ["float"]
    assert last[-1]["phase"] == "fixed"
    assert last[-1]["relative_bit_operations"] == result["cost"]["adapter_relative"]
    assert last[0]["relative_bit_operations"] == 1
    assert last[-1]["rank"] == pytest.approx(result["mean_rank"])
    assert last[-1]["bits"] == pytest.approx(result["mean_bits"])
    tensors = load_file(run.posterior)
    for m in report.matrices:
        assert tensors[f"mean/{m.name}.lora_A"].shape == (m.rank, m.in_features)
        assert m.kept == (True,) * m.rank + (False,) * (m.init_rank - m.rank)
        assert m.scores[0] == 1
    assert "bit operations" in run.card.read_text()


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
@pytest.mark.parametrize("crash", [1, 8, 17])
def test_resuming_repeats_the_run(optimizer, crash, backbone, rte, tmp_path, killed_at):
    """In each phase: gates, ranges, moments, drawn numbers, history."""
    changes = {**ACTIVE, "optimizer": optimizer, "checkpoint_every": "1"}
    whole = run_of(backbone, rte, tmp_path / "whole", **changes)
    with killed_at(crash):
        run_of(backbone, rte, tmp_path / "parts", **changes)
    resumed = run_of(backbone, rte, tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []


def test_samples_of_the_posterior_keep_the_gates(backbone, rte, tmp_path):
    from bayeslora_cli.evaluation.forward_passes import Sampling

    run = run_of(backbone, rte, tmp_path, **ACTIVE | {"optimizer": "ivon"})
    found = evaluated(run.path, device="cpu", sampling=Sampling(2, 0.0))
    assert found["sampled"]["validation"]["nll"] == pytest.approx(
        found["metrics"]["validation"]["nll"], rel=1e-6
    )


def test_warnings(backbone, rte, tmp_path, caplog):
    """Too few steps for a gate to close; everything closed."""
    with caplog.at_level(logging.WARNING, "bayeslora"):
        run = run_of(backbone, rte, tmp_path / "short", **BLORA)
    assert "--gate-lr 0.01: the learning phase has 9 steps, too few" in caplog.text
    assert run.read_result()["gates_note"] is None
    caplog.clear()
    changes = {**ACTIVE, "gate_lr": 3.0, "lambda_quant": 10.0, "lambda_rank": 10.0}
    with caplog.at_level(logging.WARNING, "bayeslora"):
        run = run_of(backbone, rte, tmp_path / "gone", **changes)
    assert "too few" not in caplog.text
    assert "everything has collapsed to rank 1 and 2 bits: lower --lambda-rank" in caplog.text
    assert run.read_result()["gates_note"] in caplog.text
    assert json.loads(run.ranks.read_text())["matrices"][0]["bits"]["A"] == 2


@pytest.mark.parametrize("mode", ["both", "quant", "rank"])
@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_bf16(mode, optimizer, backbone):
    """Weights are quantized in fp32 there too; gradients reach all that is trained, and once."""
    steps = []
    for precision in ("fp32", "bf16"):
        step, data = trained(
            backbone, optimizer, steps=0, precision=precision, blora_mode=mode, t_init=0
        )
        if optimizer == "ivon":
            step.optimizer.param_groups[0]["ess"] = 1e12
        bank = step.network.bank
        generator = torch.Generator().manual_seed(1)
        bank.singular_values(bank.mean).normal_(std=0.5, generator=generator)
        step(0, [data[0]])
        steps.append(step)
    full, low = (step.network.bank.grad[0] for step in steps)
    bank = steps[0].network.bank
    for name, segment in bank.segments.items():
        a, b = segment.view(full), segment.view(low)
        if segment.role == "adapter" and not name.endswith("lora_E"):
            # of 8 bits each, and rounded to other codes here and there
            assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.97, name
        assert bool(a.any()) == bool(b.any())


def test_gradient_checkpointing_sees_the_same_gates(backbone, rte, tmp_path):
    runs = [
        run_of(backbone, rte, tmp_path / str(on), **ACTIVE, gradient_checkpointing=on or None)
        for on in (False, True)
    ]
    a, b = (load_file(run.posterior) for run in runs)
    assert all(torch.equal(value, b[name]) for name, value in a.items())
