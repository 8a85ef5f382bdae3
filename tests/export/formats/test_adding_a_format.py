"""An export format of a user's own: one class and one entry, nothing of the package changed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bayeslora_cli.cli.app import main
from bayeslora_cli.config.catalogue import FORMATS, FormatEntry, formats_of
from bayeslora_cli.errors import BayesloraError, UserError
from bayeslora_cli.export.exporter import export_run
from bayeslora_cli.export.formats.format import Format, Snippet
from bayeslora_cli.export.formats.merged_model import merge, state_of
from bayeslora_cli.export.independent_reader import logits_of
from bayeslora_cli.export.request import ExportOptions
from tests.methods.blora.test_trainer import ACTIVE
from tests.training.test_loop import run_of

# ---- what the user writes


class NpzModel(Format):
    """The whole model as one NumPy archive beside transformers' config.json."""

    def write(self, directory, network, config, tokenizer, options):
        model = merge(network, network.bank.mean, network.bank.mask)
        arrays = {name: tensor.numpy() for name, tensor in state_of(model).items()}
        np.savez(directory / "model.npz", **arrays)
        model.config.save_pretrained(directory)
        return {"arrays": len(arrays)}

    def reopen(self, directory, config, task, device):
        settings = AutoConfig.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_config(settings)
        arrays = np.load(directory / "model.npz")
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
        return logits_of(model, device)

    def description(self, options):
        return "This is the whole model, its weights in a NumPy archive."

    def snippet(self, config, task):
        return Snippet(
            packages=("import numpy as np",),
            transformers=("AutoConfig", "AutoModelForSequenceClassification"),
            load=(
                "config = AutoConfig.from_pretrained(directory)",
                "model = AutoModelForSequenceClassification.from_config(config)",
                'arrays = np.load(f"{directory}/model.npz")',
                "model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})",
            ),
            opens_hub_names=False,
        )


NPZ = NpzModel()
ENTRY = FormatEntry(
    implementation=f"{__name__}:NPZ", bound=1e-5, library="numpy", every_method=True
)

# ---- what the package makes of it


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FORMATS, "npz", ENTRY)


RUNS = {
    "adalora": {"max_steps": 4},
    "full": {"method": "full", "optimizer": "adamw", "criterion": None, "max_steps": 3},
    "blora": ACTIVE,
}


@pytest.fixture(scope="module")
def runs(backbone, rte, tmp_path_factory):
    """A finished run of each of several methods."""
    made = {}

    def make(method):
        if method not in made:
            output = tmp_path_factory.mktemp(method)
            made[method] = run_of(backbone, rte, output, **RUNS[method])
        return made[method]

    return make


@pytest.mark.parametrize("method", RUNS)
def test_it_is_exported_from_python(method, runs, tmp_path):
    assert formats_of(method)[-1] == "npz"
    options = ExportOptions(format="npz", device="cpu")
    directory, manifest = export_run(runs(method).path, options, output=tmp_path / "out")
    with np.load(directory / "model.npz") as arrays:
        assert manifest["arrays"] == len(arrays.files) > 0
    assert manifest["format"] == "npz"
    assert manifest["check"]["rows"] == 32
    assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert {"model.npz", "config.json", "tokenizer.json", "README.md"} <= manifest["files"].keys()
    lost = {"blora": ["activations"]}.get(method)
    assert lost == (manifest["lost"] and manifest["lost"]["what"])


def test_it_is_exported_from_the_command_line(runs, monkeypatch, capsys):
    run = runs("adalora")
    arguments = ["export", str(run.path), "--format", "npz", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["bayeslora", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    directory = Path(out.splitlines()[-1])
    assert directory == run.exports / "npz"
    assert json.loads((directory / "manifest.json").read_text())["arrays"]

    card = (directory / "README.md").read_text()
    assert "library_name: numpy" in card
    assert "This is the whole model, its weights in a NumPy archive.\nReopened without" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    monkeypatch.chdir(directory)
    names = {}
    exec(compile(code.replace("…", "w1 w2"), "README.md", "exec"), names)
    assert names["logits"].shape == (1, 2)


def test_a_wrong_one_is_found(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        NpzModel, "reopen", lambda *_: lambda batch: torch.zeros(len(batch["input_ids"]), 2)
    )
    options = ExportOptions(format="npz", device="cpu")
    with pytest.raises(BayesloraError, match="the export is wrong, nothing is written"):
        export_run(runs("adalora").path, options, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_facts_are_checked_before_anything_is_loaded(runs, monkeypatch):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            export_run(runs("adalora").path, ExportOptions(format="npz", **changes))

    refused("--uniform-rank works only with --format lora, not npz", uniform_rank=True)
    monkeypatch.setitem(FORMATS, "npz", replace(ENTRY, packages=("no_such_package",)))
    refused("--format npz needs no_such_package: pip install no_such_package$")
    monkeypatch.setitem(FORMATS, "npz", replace(ENTRY, every_method=False))
    refused(
        "--format npz: a run of --method adalora can be exported as adalora, lora, gguf, merged"
    )
