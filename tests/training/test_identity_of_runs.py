"""What a run rests on: with other weights, another configuration or other rows it is refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bayeslora_cli.errors import DataError, ModelError, RunDirError
from bayeslora_cli.evaluation.run_evaluation import evaluate_run
from bayeslora_cli.export.exporter import export_run
from bayeslora_cli.export.request import ExportOptions
from tests.training.test_loop import run_of


@pytest.fixture
def places(backbone, rte, tmp_path):
    """A model and data that a test may change."""
    for name, source in (("data", rte), ("model", backbone("bert"))):
        shutil.copytree(source, tmp_path / name)
    return {"data": str(tmp_path / "data"), "model": str(tmp_path / "model")}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_run(backbone, rte, places, tmp_path):
    def train(**changes):
        return run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places | changes)

    run = train()
    assert train().path == run.path
    # moved: the same model at another place
    (tmp_path / "elsewhere").mkdir()
    shutil.move(places["model"], tmp_path / "elsewhere" / "model")
    moved = str(tmp_path / "elsewhere" / "model")
    with pytest.raises(ModelError, match="no such directory"):
        evaluate_run(run.path, device="cpu")
    here = evaluate_run(run.path, device="cpu", model=moved)
    assert train(model=moved).path == run.path
    # edited
    config = tmp_path / "elsewhere" / "model" / "config.json"
    whole = config.read_text()
    edit(config, hidden_act="relu")
    with pytest.raises(ModelError, match="hidden_act gelu then, relu now"):
        evaluate_run(run.path, device="cpu", model=moved)
    shutil.move(tmp_path / "elsewhere" / "model", places["model"])
    with pytest.raises(RunDirError, match=r"is already trained, but .* hidden_act gelu then, relu"):
        train()
    (tmp_path / "model" / "config.json").write_text(whole)
    assert evaluate_run(run.path, device="cpu").facts["metrics"] == here.facts["metrics"]
    table = tmp_path / "data" / "RTE" / "train.tsv"
    table.write_text(table.read_text().replace("w1 ", "w2 ", 1))
    with pytest.raises(RunDirError, match="is already trained, but the rows or labels of its data"):
        train()


def test_an_unfinished_run(backbone, rte, places, tmp_path, killed_at):
    with killed_at(9):
        run_of(backbone, rte, tmp_path / "runs", checkpoint_every="4", **places)
    config = tmp_path / "model" / "config.json"
    whole = config.read_text()
    edit(config, layer_norm_eps=1e-3)
    with pytest.raises(RunDirError, match=r"layer_norm_eps 1e-12 then, 0\.001 now"):
        run_of(backbone, rte, tmp_path / "runs", **places)
    config.write_text(whole)
    edit(tmp_path / "model" / "tokenizer_config.json", padding_side="left")
    with pytest.raises(RunDirError, match="the backbone's weights have changed since"):
        run_of(backbone, rte, tmp_path / "runs", **places)


def swap_layers(tensors):
    """Exchange two layers of the encoder."""
    for name in [n for n in tensors if ".layer.0." in n]:
        other = name.replace(".layer.0.", ".layer.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def change_embeddings(tensors):
    """Change three values of one embedding, which samples of the weights do not see."""
    (name,) = (n for n in tensors if n.endswith("word_embeddings.weight"))
    tensors[name][17, 3:6] += 0.5


@pytest.mark.parametrize("change", [swap_layers, change_embeddings])
def test_changed_weights(change, backbone, rte, places, tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    run = run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places)
    file = tmp_path / "model" / "model.safetensors"
    whole, times = file.read_bytes(), file.stat()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == len(whole)
    for use in (
        lambda: evaluate_run(run.path, device="cpu"),
        lambda: export_run(run.path, ExportOptions(format="merged")),
    ):
        with pytest.raises(ModelError, match="its weights are others now"):
            use()
    with pytest.raises(RunDirError, match=r"is already trained, but .* its weights are others now"):
        run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places)
    file.write_bytes(whole)
    evaluate_run(run.path, device="cpu")


def test_verify_and_model_on_an_export(backbone, rte, places, tmp_path, monkeypatch):
    """What is remembered of a file is believed, unless --verify hashes it anew."""
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    run = run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    options = ExportOptions(format="merged")
    with pytest.raises(ModelError, match="no such directory"):
        export_run(run.path, options)
    export_run(run.path, options, model=str(tmp_path / "moved"), output=tmp_path / "whole")
    file, memory = tmp_path / "moved" / "model.safetensors", tmp_path / "cache" / "weights.json"
    tensors = load_file(file)
    change_embeddings(tensors)
    save_file(tensors, file, {"format": "pt"})
    known, now = json.loads(memory.read_text()), file.stat()
    stamp = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    known[str(file.resolve())] = [*stamp, known[str(file.resolve())][-1]]
    memory.write_text(json.dumps(known))
    moved = {"model": str(file.parent), "output": tmp_path / "damaged"}
    with pytest.raises(ModelError, match="its weights are others now"):
        export_run(run.path, options, verify=True, **moved)
    assert not (tmp_path / "damaged").exists()


def test_changed_rows(backbone, rte, places, tmp_path, caplog):
    """The rows of the evaluated split are compared with those of the training."""
    run = run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places)
    here = evaluate_run(run.path, device="cpu")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = evaluate_run(run.path, device="cpu", data=str(tmp_path / "moved"))
    assert moved.facts["metrics"] == here.facts["metrics"]
    assert "other rows" not in caplog.text
    assert run_of(backbone, rte, tmp_path / "runs", max_steps=2, **places | {
        "data": str(tmp_path / "moved")}).path == run.path  # fmt: skip
    shutil.move(tmp_path / "moved", tmp_path / "data")
    table = tmp_path / "data" / "RTE" / "dev.tsv"
    table.write_text(table.read_text().replace("w1 ", "w2 ", 1))
    with pytest.raises(DataError, match="validation of rte has other rows or labels than at the"):
        evaluate_run(run.path, device="cpu")
    evaluate_run(run.path, device="cpu", split="train")
    evaluate_run(run.path, device="cpu", data=places["data"])
    assert "validation of rte has other rows or labels than at the training" in caplog.text
