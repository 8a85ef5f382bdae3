"""Each byte of the weights, what matters of the configuration, the tokenizer."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bayeslora_cli.models.backbones import identity
from bayeslora_cli.models.backbones.identity import differences, model_identity


@pytest.fixture
def model(backbone, tmp_path):
    return shutil.copytree(backbone("bert"), tmp_path / "model")


def changed(path, **values):
    """Edit a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_copy_is_the_same_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("a card")
    changed(copy / "config.json", _name_or_path="elsewhere", use_cache=False)
    assert differences(model_identity(str(model)), model_identity(str(copy))) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("num_attention_heads", 4),
     ("hidden_dropout_prob", 0.3)],
)  # fmt: skip
def test_an_edited_configuration(name, value, model):
    then = model_identity(str(model))
    changed(model / "config.json", **{name: value})
    (said,) = differences(then, model_identity(str(model)))
    assert said.startswith(f"its config.json is another now: {name} ")
    assert said.endswith(f" then, {value} now")


def test_another_version_has_other_defaults(model):
    then = model_identity(str(model))
    then["transformers"] = "4.0"
    del then["configuration"]["hidden_act"]
    assert differences(then, model_identity(str(model))) == []


def test_another_tokenizer(model):
    then = model_identity(str(model))
    changed(model / "tokenizer_config.json", padding_side="left")
    assert differences(then, model_identity(str(model))) == ["its tokenizer is another now"]


def test_one_bit_of_the_weights(model):
    then = model_identity(str(model))
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert differences(then, model_identity(str(model))) == ["its weights are others now"]


def test_weights_are_hashed_once(model, monkeypatch):
    hashed, original = [], identity._hashed
    monkeypatch.setattr(identity, "_hashed", lambda path: hashed.append(path) or original(path))

    def weights(**options):
        hashed.clear()
        model_identity(str(model), **options)
        return [path.name for path in hashed if path.suffix == ".safetensors"]

    assert weights() == ["model.safetensors"]
    assert weights() == []
    assert weights(verify=True) == ["model.safetensors"]
    path = model / "model.safetensors"
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as some copying tools do
    assert weights() == ["model.safetensors"]
    monkeypatch.setenv(identity.VARIABLE, "")
    monkeypatch.setattr(identity, "_HASHED", {})  # another process, without a cache
    assert weights() == ["model.safetensors"]
    assert weights() == []


def test_what_is_remembered_may_be_damaged(model, monkeypatch):
    then = model_identity(str(model))
    path = identity.cache_directory() / "weights.json"
    for text in ("{", "[]", json.dumps({str(model / "model.safetensors"): [1]})):
        path.write_text(text)
        monkeypatch.setattr(identity, "_HASHED", {})
        assert model_identity(str(model)) == then
