"""Merged models in bf16: what is written, and what of the adapter is left, as measured."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError
from bayeslora_cli.export.exporter import export_run
from bayeslora_cli.export.findings import RoundingLoss, describe_export
from bayeslora_cli.export.formats.bf16_rounding import UpdateMeter, bf16
from bayeslora_cli.export.formats.merged_model import MERGED, merge
from bayeslora_cli.export.request import ExportOptions
from tests.methods.blora.test_trainer import ACTIVE
from tests.support.chat_runs import chat_run
from tests.support.decoders import CAUSAL, save_decoder
from tests.support.networks import build, randomise
from tests.training.test_loop import run_of

BF16 = ExportOptions(format="merged", precision="bf16", device="cpu")


def measured(weight, update):
    meter = UpdateMeter()
    meter.add("w", weight, update)
    return meter.result()


@pytest.mark.parametrize(("share", "error", "unchanged"), [(1e-3, 0.77, 0.77), (1e-2, 0.19, 0.19)])
def test_small_updates_drown(share, error, unchanged):
    """Gaussian weights in bf16, and updates of a thousandth and a hundredth of their norm."""
    generator = torch.Generator().manual_seed(0)
    weight = bf16(torch.randn(256, 256, generator=generator))
    update = torch.randn(256, 256, generator=generator) * share
    found = measured(weight, update)
    assert found.relative_error == pytest.approx(error, abs=0.06)
    assert found.unchanged == pytest.approx(unchanged, abs=0.06)


@given(st.integers(1, 4), st.integers(-20, 3), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_the_measure_element_by_element(matrices, size, seed):
    generator = torch.Generator().manual_seed(seed)
    meter, error, norm, same, count = UpdateMeter(), 0.0, 0.0, 0, 0
    for index in range(matrices):
        weight = torch.randn(3, 4, generator=generator)
        update = torch.randn(3, 4, generator=generator) * 2.0**size
        meter.add(str(index), weight, update)
        for w, d in zip(weight.flatten().tolist(), update.flatten().tolist(), strict=True):
            after = float((torch.tensor(w) + torch.tensor(d)).bfloat16())
            before = float(torch.tensor(w).bfloat16())
            error += (after - before - d) ** 2
            norm += d**2
            same += after == before
            count += 1
    found = meter.result()
    assert found.relative_error == pytest.approx((error / norm) ** 0.5, rel=1e-5)
    assert found.unchanged == same / count
    assert found.worst_relative_error >= found.relative_error * (1 - 1e-9)


def test_no_update_no_measure():
    assert measured(torch.ones(2, 2), torch.zeros(2, 2)) is None


def test_weights_are_merged_in_fp32_and_then_rounded(tmp_path):
    model = save_decoder(tmp_path / "model")
    exact, rounded = (build(model, CAUSAL)[0] for _ in range(2))
    for network in (exact, rounded):
        randomise(network)
    expected = merge(exact, exact.bank.mean, exact.bank.mask).state_dict()
    (tmp_path / "out").mkdir()
    found = MERGED.round(rounded, BF16)
    assert 0 < found.update.unchanged < 1
    assert MERGED.write(tmp_path / "out", rounded, RunConfig(task="rte"), None, BF16) == {
        "weights": "bf16"
    }
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in stored.items():
        assert torch.equal(value, expected[name].to(torch.bfloat16)), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_causal_run(tmp_path):
    """The output, the card and the manifest say what is lost; vLLM reads it as it is."""
    run = chat_run(tmp_path)
    found = run.export("merged", precision="bf16")
    assert found.path == run.path / "export" / "merged-bf16"
    loss = RoundingLoss.from_json(found.manifest["rounding"])
    assert loss.update.relative_error > 0
    assert 0 < loss.update.unchanged < 1
    assert loss.changed is None
    said = describe_export(found.manifest)
    assert str(loss) in said
    card = (found.path / "README.md").read_text()
    assert "\nRounded to bf16, the adapter's update has a relative error of " in card
    assert "```sh\nvllm serve .\n```" in card
    assert found.manifest["serving"] == ["vllm serve ."]
    assert found.manifest["weights"] == "bf16"
    check = found.manifest["check"]
    assert check["max_difference"] <= 1e-5 * check["largest_logit"], "of the rounded weights"
    exact = run.export("merged")
    assert exact.manifest["serving"] == ["vllm serve . --dtype float32"]
    assert "rounding" not in exact.manifest
    with pytest.raises(UserError, match="--precision works only with --format merged, not lora"):
        run.export("lora", precision="bf16")
    with pytest.raises(UserError, match="--precision fp16: choose fp32 or bf16"):
        run.export("merged", precision="fp16")


@pytest.mark.parametrize("method", ["full", "blora"])
def test_classifiers_and_what_they_lose(method, backbone, rte, tmp_path):
    changes = {
        "full": {"method": "full", "optimizer": "adamw", "criterion": None, "max_steps": 3},
        "blora": ACTIVE,
    }[method]
    run = run_of(backbone, rte, tmp_path, **changes)
    directory, manifest = export_run(run.path, BF16)
    assert (manifest["rounding"]["update"] is None) == (method == "full")
    assert manifest["rounding"]["max_difference"] > 0
    assert 0 <= manifest["rounding"]["changed"] <= manifest["rounding"]["rows"] == 32
    stored = load_file(directory / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.bfloat16}
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    assert "serving" not in manifest
