"""A new kind of task as a user adds it: one class and one entry, no other file of the package.

docs/extending.md shows the class as it stands here.
"""

from __future__ import annotations

import csv
import json

import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

from bayeslora_cli.config.catalogue import OBJECTIVES, ObjectiveEntry
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.tasks.objectives.objective import Objective, build_objective, objective_of
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import custom_task, table_examples
from bayeslora_cli.training.loop import train
from tests.conftest import SPECIAL, WORDS
from tests.support.evaluation import evaluated


class MultiLabel(Objective):
    """Any number of classes per row: a sigmoid for each."""

    table_metrics = ("micro_f1", "macro_f1")
    table_selecting = "micro_f1"
    problem_type = "multi_label_classification"

    @classmethod
    def claims(cls, column):
        return all(isinstance(names, list) for names in column.values)

    @classmethod
    def classes_of(cls, column):
        return tuple(sorted({name for names in column.values for name in names}))

    def parse(self, column):
        for row, names in enumerate(column.values):
            if not set(names) <= set(self.classes):
                raise column.unexpected(row, f"some of {', '.join(self.classes)}")
        return list(column.values)

    def label_tensor(self, labels):
        found = torch.zeros(len(labels), len(self.classes))
        for row, names in enumerate(labels):
            for name in names:
                found[row, self.classes.index(name)] = 1
        return found

    def loss(self, logits, batch):
        return F.binary_cross_entropy_with_logits(logits, batch["labels"])

    def expected(self, logits):
        return logits.sigmoid()

    def entropy(self, expected):
        return (torch.special.entr(expected) + torch.special.entr(1 - expected)).sum(-1)

    def metrics(self, names, expected, labels, variance=None):
        decided = self.decide(expected)
        known = {
            f"{average}_f1": float(f1_score(labels, decided, average=average, zero_division=0))
            for average in ("micro", "macro")
        }
        nll = F.binary_cross_entropy(expected, labels.double(), reduction="none").sum(-1).mean()
        return {name: known[name] for name in names} | {"nll": float(nll)}

    def decide(self, expected):
        return (expected > 0.5).float()

    def spell(self, labels):
        return [
            " ".join(name for name, on in zip(self.classes, row, strict=True) if on)
            for row in labels.tolist()
        ]


class NextWord(Classification):
    """The class is the word that a causal language model says next: no head, no new weights."""

    @classmethod
    def claims(cls, column):
        return all(label in WORDS for label in column.values)

    def model_options(self):
        return {}

    def loss(self, logits, batch):
        return super().loss(self.predict(logits, batch), batch)

    def predict(self, logits, batch):
        """(b, w, vocabulary) -> (b, classes), at the last token of each row."""
        last = batch["attention_mask"].sum(1) - 1
        words = [len(SPECIAL) + WORDS.index(name) for name in self.classes]
        return logits[torch.arange(len(last)), last][:, words]


@pytest.fixture
def entered(monkeypatch):
    """The entry, for the time of a test."""
    entry = ObjectiveEntry(
        implementation=f"{__name__}:MultiLabel",
        predicts="any number of classes",
        auto_class="AutoModelForSequenceClassification",
        peft_task="SEQ_CLS",
        pipeline_tag="text-classification",
    )
    monkeypatch.setitem(OBJECTIVES, "multi_label", entry)


def labels_of(text):
    """Which of three words a text has."""
    return [name for name, word in zip("abc", WORDS, strict=False) if word in text.split()]


@pytest.fixture
def files(tmp_path):
    """Rows in JSON Lines: a text, and a list of none to three classes."""
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("train", 96), ("dev", 24)):
        words = torch.randint(6, (rows, 4), generator=generator).tolist()
        texts = [" ".join(WORDS[i] for i in row) for row in words]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": t, "labels": labels_of(t)}) + "\n" for t in texts)
        )
    return {"train_file": str(tmp_path / "train.jsonl"), "eval_file": str(tmp_path / "dev.jsonl")}


def run_of(backbone, output, files, **changes):
    """A run on the files as a user would start it."""
    typed = {"task": "custom", "model": backbone("bert"), "output": str(output), "device": "cpu",
             "batch_size": 16, "grad_accum": 2, **files}  # fmt: skip
    return train(resolve(typed | changes))


@pytest.mark.usefixtures("entered")
def test_it_learns(backbone, files, tmp_path):
    run = run_of(backbone, tmp_path / "runs", files, method="full", optimizer="adamw", lr=0.003,
                 max_steps=60, eval_every=30)  # fmt: skip
    task = run.read_task()
    assert isinstance(objective_of(task), MultiLabel)
    assert (task.classes, task.selecting) == (("a", "b", "c"), "micro_f1")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    metrics = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert metrics.keys() == {"micro_f1", "macro_f1", "nll"}
    assert metrics["macro_f1"] > 0.7
    found = evaluated(run.path, device="cpu")
    assert found["metrics"]["validation"] == pytest.approx(metrics, abs=1e-6)
    assert found.keys() == {"run", "task", "split", "precision", "metrics"}


@pytest.mark.usefixtures("entered")
def test_samples_and_predictions(backbone, files, tmp_path):
    run = run_of(backbone, tmp_path / "runs", files, max_steps=4)
    config = json.loads(next(run.adapter.rglob("config.json")).read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == ["a", "b", "c"]

    _, manifest = export_run(run.path, ExportOptions(format="lora", device="cpu"))
    assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]

    path = tmp_path / "found.csv"
    found = evaluated(
        run.path, device="cpu", sampling=Sampling(3), predictions=path, file=files["eval_file"]
    )
    assert found["sampled"]["file"].keys() == found["metrics"]["file"].keys()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {
        "row", "prediction", "label", "p(a)", "p(b)", "p(c)", "entropy", "mutual_information",
    }  # fmt: skip
    with open(files["eval_file"]) as file:
        assert [row["label"].split() for row in rows] == [json.loads(x)["labels"] for x in file]
    for row in rows:
        likely = [name for name in "abc" if float(row[f"p({name})"]) > 0.5]
        assert row["prediction"].split() == likely
        assert float(row["entropy"]) >= float(row["mutual_information"]) >= 0
    with pytest.raises(UserError, match="predicts any number of classes, which has no confidence"):
        evaluated(run.path, device="cpu", reliability=True)


def test_a_backbone_without_a_head(backbone, tmp_path, monkeypatch):
    entry = ObjectiveEntry(
        implementation=f"{__name__}:NextWord",
        predicts="a word",
        auto_class="AutoModelForCausalLM",
        head=False,
        peft_task="CAUSAL_LM",
        pipeline_tag="text-generation",
    )
    monkeypatch.setitem(OBJECTIVES, "next_word", entry)
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{WORDS[i % 7]} {WORDS[i % 3]}", "label": WORDS[i % 3]} for i in range(42)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train_file": str(path), "eval_file": str(path), "model": backbone("gpt2")}
    run = run_of(backbone, tmp_path / "runs", files, optimizer="adamw", lr=0.03, max_steps=80)
    result = run.read_result()
    assert result["best_at_budget"]["metrics"]["validation"]["accuracy"] == 1
    adapted = json.loads((run.adapter / "adapter_config.json").read_text())
    assert adapted["task_type"] == "CAUSAL_LM"
    assert not adapted["modules_to_save"]
    _, manifest = export_run(run.path, ExportOptions(format="lora", device="cpu"))
    assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert "pipeline_tag: text-generation" in run.card.read_text()


def test_a_kind_that_nobody_has_entered_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no kind of task named 'multi_label'.*OBJECTIVES"):
        build_objective("multi_label", ("a", "b"))
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "w1", "labels": {"a": 1}}\n{"text": "w2", "labels": {}}\n')
    table = read_table(str(path), "--train-file", split="train")
    with pytest.raises(DataError, match=r"line 1: found the label {'a': 1}; expected text"):
        custom_task(table, text_columns=None, label_column=None)


@pytest.mark.usefixtures("entered")
def test_other_tables_go_to_the_kinds_that_they_went_to(tmp_path):
    for labels, kind in ((["x", "y"], "classification"), ([1, 2], "classification"),
                         ([0.5, 1], "regression"), ([["x"], []], "multi_label")):  # fmt: skip
        path = tmp_path / "train.jsonl"
        rows = [{"text": "w1", "label": label} for label in labels]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = read_table(str(path), "--train-file", split="train")
        task = custom_task(table, text_columns=None, label_column=None)
        assert task.objective == kind
        assert table_examples(table, task, labelled=True).labels is not None
