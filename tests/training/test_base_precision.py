"""Whole runs on frozen weights in few bits, evaluated and exported; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bayeslora_cli.api.models import evaluate, generate
from bayeslora_cli.api.run import Run
from bayeslora_cli.api.training import train
from bayeslora_cli.config.catalogue import BASE_PRECISIONS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ConfigError, ModelError
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.models.base_weights import selection
from bayeslora_cli.models.base_weights.fp8 import Fp8Linear
from bayeslora_cli.models.base_weights.nf4 import Nf4Linear
from bayeslora_cli.training.step import TrainStep
from tests.support.faults import contents, differences
from tests.support.quantized import network_of, save_llama

pytest.importorskip("bitsandbytes")
ROWS = [
    {"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i + 3} w{i + 4}"} for i in range(20)
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


def check_code(card, run, monkeypatch):
    """The card's code makes the same weights by bitsandbytes' own layers."""
    monkeypatch.chdir(run.path)
    names = {}
    code = card.split("```python\n")[1].split("```")[0]
    assert 'bnb_4bit_quant_type="nf4"' in code
    exec(code.replace("…", "w1 w2 w3"), names)
    inputs = names["inputs"]
    with torch.no_grad():
        found = names["model"](**inputs).logits.float()
    wanted = run.load().network.model_logits(dict(inputs)).detach()
    assert (found - wanted).norm() <= 1e-2 * wanted.norm()


def test_a_run_on_nf4(llama, tmp_path, monkeypatch):
    """Results, card and exports say what they hold for."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    run = train(
        train_file=str(file), model=str(llama), base_precision="nf4", max_steps=3, target_rank=2,
        output=str(tmp_path / "runs"), device="cpu", log_every=1,
    )  # fmt: skip
    directory = Run(run.path, device="cpu")
    result = json.loads((run.path / "result.json").read_text())
    assert result["base_precision"] == "nf4"
    card = (run.path / "README.md").read_text()
    assert "frozen weights in nf4" in card
    check_code(card, run, monkeypatch)
    same, other = directory.evaluate(), directory.evaluate(base_precision="bf16")
    (split,) = result["best_at_budget"]["metrics"]
    assert same.metrics[split]["nll"] == pytest.approx(
        result["best_at_budget"]["metrics"][split]["nll"], abs=1e-6
    )
    assert (same.facts["base_precision"], other.facts["base_precision"]) == ("nf4", "bf16")
    assert same.metrics[split]["nll"] != other.metrics[split]["nll"]
    # an adapter is opened on the checkpoint, a merged model is the run's
    adapter = directory.export("lora").manifest
    assert adapter["base"]["base_precision"] == "nf4"
    assert adapter["base"]["max_difference"] > 10 * adapter["check"]["max_difference"]
    merged = directory.export("merged").manifest
    assert "base" not in merged
    assert merged["check"]["max_difference"] <= merged["check"]["allowed"]


def test_a_killed_run_goes_on_to_the_bit(llama, tmp_path, monkeypatch):
    """And its samples and texts are those of the weights that it was trained on."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    options = {"train_file": str(file), "model": str(llama), "base_precision": "nf4",
               "max_steps": 4, "target_rank": 2, "device": "cpu", "checkpoint_every": "1",
               "criterion": "snr"}  # fmt: skip

    class Killed(BaseException):
        pass

    def killed(self, step, micro_batches):
        if step == 2:
            raise Killed
        original(self, step, micro_batches)

    original = TrainStep.__call__
    whole = train(**options, output=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            train(**options, output=str(tmp_path / "parts"))
    resumed = train(**options, output=str(tmp_path / "parts"))
    assert differences(resumed.path, contents(whole.path)) == []
    found = whole.evaluate(samples=2).facts
    assert found["base_precision"] == "nf4"
    assert found["sampled"] != found["metrics"]
    prompts = ["w1 w2 w3", "w5"]
    own, other = (whole.generate(prompts, samples=2, max_new_tokens=5, base_precision=b)
                  for b in (None, "bf16"))  # fmt: skip
    assert [len(text.texts) for text in own] == [len(text.texts) for text in other] == [2, 2]


@pytest.mark.parametrize("base", ["int8", "fp8"])
def test_blora_on_an_encoder(base, backbone, rte, tmp_path):
    """Gates, bit widths and a head, on weights in few bits; the metrics are found again."""
    run = train(
        task="rte", data=str(rte), model=backbone("bert"), method="blora", optimizer="adamw",
        base_precision=base, max_steps=2, device="cpu", output=str(tmp_path),
    )  # fmt: skip
    expected = run.result["best_at_budget"]["metrics"]["validation"]
    assert run.result["base_precision"] == base
    found = run.evaluate().metrics["validation"]
    common = found.keys() & expected.keys()
    assert "nll" in common
    assert [found[n] for n in common] == pytest.approx([expected[n] for n in common], abs=1e-6)


@pytest.mark.parametrize("base", ["int8", "nf4", "fp8"])
def test_a_model_without_a_run(base, llama, tmp_path):
    """Its rows' metrics, and what it writes, on the quantized weights."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    found, plain = (
        evaluate(llama, file=file, device="cpu", base_precision=b).facts for b in (base, None)
    )
    assert (found["base_precision"], plain.get("base_precision")) == (base, None)
    nll, other = (next(iter(facts["metrics"].values()))["nll"] for facts in (found, plain))
    assert 0 < abs(nll - other) < 0.5
    tokenizer = load_tokenizer(str(llama))
    prompt = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    module = network_of(llama, base).module.eval()
    expected = module.generate(prompt, max_new_tokens=4, do_sample=False)[0, prompt.shape[1] :]
    (text,) = generate(
        llama, ["w1 w2 w3"], max_new_tokens=4, chat=False, device="cpu", base_precision=base
    )
    assert text.texts == (tokenizer.decode(expected, skip_special_tokens=True),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "full"}, "--base-precision nf4: --method full trains the weights themselves"),
        ({"method": "blora", "quantize_base": True}, "--quantize-base would quantize"),
        ({"method": "full", "shard": True}, "--shard: --method full trains the weights, and"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig(base_precision="nf4", criterion=None, optimizer="adamw", **options)


def test_without_the_package(llama, monkeypatch):
    entry = replace(BASE_PRECISIONS["nf4"], packages=("not_there",))
    monkeypatch.setitem(BASE_PRECISIONS, "nf4", entry)
    with pytest.raises(ModelError, match=r"needs the package not_there: .*bayeslora\[quantized"):
        network_of(llama, "nf4")


def test_a_gpu_without_fp8(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    with pytest.raises(
        ModelError, match=r"A100 cannot multiply fp8 .*8\.0, needs 8\.9.*int8 or nf4"
    ):
        selection.base_form("fp8", torch.bfloat16, torch.device("cuda"))


def test_layers_that_do_not_fit(tmp_path):
    assert "multiples of 16" in str(Fp8Linear.refusal(64, 40))
    assert "odd number" in str(Nf4Linear.refusal(3, 5))
    directory = save_llama(tmp_path, width=40)
    with pytest.raises(
        ModelError, match=r"--base-precision fp8: model\.layers\.\d.*has \d+ inputs"
    ):
        network_of(directory, "fp8")


def test_a_quantized_checkpoint_is_refused(llama, tmp_path):
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is quantized already \(gptq\)"):
        network_of(tmp_path, "int8")


@pytest.mark.parametrize("base", ["nf4", "int8", "fp8"])
def test_shapes_without_weights(base, llama):
    """What `--dry-run` builds."""
    network = network_of(llama, base, device="meta")
    held = network_of(llama, base)
    for name, layer in network.adapters.items():
        pairs = zip(layer.base_layer.stored(), held.adapters[name].base_layer.stored(), strict=True)
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
    assert network.backbone_sha256 == ""
    assert held.backbone_sha256 == network_of(llama, None).backbone_sha256
