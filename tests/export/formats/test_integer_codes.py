"""B-LoRA's exports: codes read back to the bit, and what other formats lose."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from bayeslora_cli.errors import BayesloraError, RunDirError, UserError
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.export.exporter import export_run
from bayeslora_cli.export.findings import describe_export
from bayeslora_cli.export.formats import integer_codes
from bayeslora_cli.export.formats.integer_codes import CODES, FACTS, load_quantized
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.export.verification import run_logits
from bayeslora_cli.tasks.objectives.objective import objective_of
from tests.methods.blora.test_trainer import ACTIVE
from tests.training.test_loop import run_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(backbone, rte, tmp_path_factory):
    """Runs by kind of backbone and whether its weights are quantized."""
    made = {}

    def make(kind, base):
        if (kind, base) not in made:
            targets = ("all-linear",) if kind == "gpt2" else None
            made[kind, base] = run_of(
                backbone, rte, tmp_path_factory.mktemp("runs"), **ACTIVE, model=backbone(kind),
                quantize_base=base or None, target_modules=targets,
            )  # fmt: skip
        return made[kind, base]

    return make


def exported(run, form, tmp_path, **changes):
    plain, _, variant = form.partition("-")
    options = ExportOptions(format=plain, device="cpu", patterns=bool(variant), **changes)
    return export_run(run.path, options, output=tmp_path / form)


def network_of(run):
    config, task = run.read_config(), run.read_task()
    return load_run(run, config, objective_of(task), "cpu")[0]


def batch():
    ids = torch.randint(4, 60, (5, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


RUNS = [("bert", False), ("bert", True), ("deberta-v2", True), ("gpt2", True)]


@pytest.mark.parametrize(("kind", "base"), RUNS)
def test_codes_are_the_run_to_the_bit(kind, base, runs, tmp_path):
    run = runs(kind, base)
    directory, manifest = exported(run, "quantized", tmp_path)
    assert manifest["check"]["max_difference"] == manifest["check"]["allowed"] == 0
    network = network_of(run)
    gates, bank = network.operands, network.bank
    tensors = load_file(directory / CODES)
    facts = json.loads((directory / FACTS).read_text())
    flat = gates.effective(bank.mean)
    whole = gates.effective_base(bank.mean)
    found = network.widths(bank.mean)
    for index, (name, layer) in enumerate(network.adapters.items()):
        own = facts["matrices"][index]
        rank = own["rank"]
        assert own["name"] == name
        assert rank == int(bank.mask[index].sum())
        assert own["bits"] == found[index]
        parts = {p: bank.segments[f"{name}.lora_{p}"].view(flat) for p in "AEB"}
        expected = {"A": parts["A"][:rank], "E": parts["E"][:rank, 0], "B": parts["B"][:, :rank]}
        if base:
            expected["W"] = layer.base_layer.oriented(whole[name])
        for operand, value in expected.items():
            codes, bits = tensors[f"{name}.{operand}"], own["bits"][operand]
            assert codes.dtype == (torch.int16 if bits == 16 else torch.int8)
            assert codes.int().abs().max() < 2 ** (bits - 1)
            step = tensors[f"{name}.{operand}.range"][2]
            assert torch.equal(codes.float() * step, value), (name, operand)
        assert f"{name}.x.range" in tensors
        assert layer.scale == facts["scale"] == 256 / 3
    assert facts["cost"] == run.read_result()["cost"] == manifest["cost"]
    again = load_quantized(directory, CPU)
    assert torch.equal(run_logits(again, [batch()])[0], run_logits(network, [batch()])[0])


def test_a_run_from_elsewhere_gives_the_same(runs, tmp_path):
    """Only the export and the backbone are read: the run's own directory is not there."""
    run = runs("bert", False)
    expected = run_logits(network_of(run), [batch()])[0]
    directory, _ = exported(run, "quantized", tmp_path)
    moved = directory.rename(tmp_path / "elsewhere")
    assert str(run.path) not in (moved / "config.toml").read_text()
    torch.manual_seed(77)
    assert torch.equal(run_logits(load_quantized(moved, CPU), [batch()])[0], expected)


def test_a_wrong_code_is_noticed(runs, tmp_path, monkeypatch):
    run = runs("bert", False)
    original = integer_codes.save_quantized

    def wrong(network, config, mean, mask, directory):
        facts = original(network, config, mean, mask, directory)
        tensors = load_file(directory / CODES)
        name = next(n for n in tensors if n.endswith(".B") and tensors[n].any())
        tensors[name] = -tensors[name]
        save_file(tensors, directory / CODES)
        return facts

    monkeypatch.setattr(integer_codes, "save_quantized", wrong)
    with pytest.raises(BayesloraError, match="the export is wrong"):
        exported(run, "quantized", tmp_path)
    assert not (tmp_path / "quantized").exists()


@pytest.mark.parametrize("form", ["lora", "lora-patterns", "merged"])
@pytest.mark.parametrize(("kind", "base"), RUNS)
def test_other_formats_say_what_they_lose(form, kind, base, runs, tmp_path, caplog):
    run = runs(kind, base)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        directory, manifest = exported(run, form, tmp_path)
    lost = ["activations"] + (["base weights"] if base and form != "merged" else [])
    assert manifest["lost"]["what"] == lost
    assert manifest["lost"]["max_difference"] > manifest["check"]["allowed"]
    assert manifest["lost"]["rows"] == manifest["check"]["rows"]
    assert 0 <= manifest["lost"]["changed"] <= manifest["lost"]["rows"]
    assert "neither rounded nor cut off at their ranges" in caplog.text
    assert f"not quantized in this format: {' and '.join(lost)}" in caplog.text
    both, new = (describe_export(manifest, warned=warned) for warned in (True, False))
    assert [line for line in both if "not quantized" not in line] == new != both
    assert "Not quantized in this format: activations" in (directory / "README.md").read_text()
    if form == "lora-patterns":
        config = json.loads((directory / "adapter_config.json").read_text())
        usual = config["lora_alpha"]
        for name, rank in manifest["ranks"].items():
            alpha = config["alpha_pattern"].get(name, usual)
            if name not in config["target_modules"]:
                continue  # saved whole
            own = config["rank_pattern"].get(name, config["r"])
            assert own == rank
            assert alpha / own == pytest.approx(256 / 3)


def test_the_runs_own_adapter_opens_in_peft(runs, backbone):
    """E folded, quantized weights as numbers: the run without its activations' quantizers."""
    run = runs("bert", False)
    base = AutoModelForSequenceClassification.from_pretrained(backbone("bert"), num_labels=2)
    model = PeftModel.from_pretrained(base, run.adapter).eval()
    network = network_of(run)
    network.operands.quantized -= {"x", "a", "h"}
    with torch.no_grad():
        found = model(**batch()).logits
    torch.testing.assert_close(found, run_logits(network, [batch()])[0], rtol=1e-5, atol=1e-5)


def test_nothing_quantized_nothing_to_export(backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path, **ACTIVE, blora_mode="rank")
    with pytest.raises(UserError, match="--blora-mode rank has quantized nothing"):
        exported(run, "quantized", tmp_path / "out")
    assert exported(run, "lora", tmp_path / "out")[1]["lost"] is None


@pytest.mark.parametrize("name", [CODES, FACTS, "config.toml"])
@pytest.mark.parametrize("harm", ["gone", "garbage"])
def test_damaged_exports(name, harm, runs, tmp_path):
    directory, _ = exported(runs("bert", False), "quantized", tmp_path)
    if harm == "gone":
        (directory / name).unlink()
    else:
        (directory / name).write_text("{")
    with pytest.raises(RunDirError if name != "config.toml" or harm == "gone" else UserError):
        load_quantized(directory, CPU)
