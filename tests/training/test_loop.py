"""Whole runs: every method through the one loop, files, resuming, divergence."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.errors import (
    BayesloraError,
    ConfigError,
    ModelError,
    NonFiniteError,
    RunDirError,
)
from bayeslora_cli.evaluation.forward_passes import logits_of
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.runs import checkpoint
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.sources.loading import load_task
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.step import TrainStep
from tests.conftest import save_backbone
from tests.support.evaluation import evaluated
from tests.support.faults import contents, differences
from tests.support.finished_runs import reseal
from tests.training.test_step import METHODS


def options(backbone, rte, output, **changes):
    typed = {
        "task": "rte", "data": rte, "model": backbone("bert", 0.1), "output": str(output),
        "max_steps": 13, "batch_size": 16, "log_every": 3, "max_length": 16, "device": "cpu",
        "eval_every": 100,
    } | changes  # fmt: skip
    return {k: v for k, v in typed.items() if v is not None}


def run_of(backbone, rte, output, **changes):
    return train(resolve(options(backbone, rte, output, **changes)))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_every_method(method, optimizer, criterion, backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path, method=method, optimizer=optimizer, criterion=criterion)
    name = f"{method}-{optimizer}-{criterion}" if criterion else f"{method}-{optimizer}"
    assert run.path.parent.name.startswith(f"rte-{name}")
    assert run.path.name == "seed-2021"
    result = run.read_json(run.result)
    assert result["steps"] == 13
    for record in ("best", "best_at_budget", "last"):
        assert set(result[record]["metrics"]["validation"]) == {"accuracy", "nll"}
    # read back, the run is its best evaluation at the final budget
    found = evaluated(run.path, device="cpu")["metrics"]["validation"]
    expected = result["best_at_budget"]["metrics"]["validation"]
    assert found["accuracy"] == expected["accuracy"]
    assert found["nll"] == pytest.approx(expected["nll"], abs=1e-6)

    report = RankReport.from_json(run.read_json(run.ranks), "ranks.json")
    assert {m.name: m.rank for m in report.matrices} == result["ranks"]
    if method == "adalora":
        assert report.budget == 2 * len(report.matrices)
        assert all(m.init_rank == 3 for m in report.matrices)
        assert lines(run.ranks_history)[-1]["ranks"] == result["ranks"]
    with safe_open(run.posterior, "pt") as file:
        names = list(file.keys())
    assert any(n.startswith("sigma/") for n in names) == (optimizer == "ivon")
    steps = [line["step"] for line in lines(run.metrics) if "loss" in line]
    assert steps == [2, 3, 5, 7, 8, 11, 12]
    assert run.read_json(run.environment)["end"] is not None


@pytest.mark.parametrize("method", ["adalora", "full"])
def test_the_adapter_opens_without_us(method, backbone, rte, tmp_path):
    """In plain PEFT, or in plain transformers: the logits that `eval` sees."""
    criterion = "snr" if method == "adalora" else None
    run = run_of(
        backbone, rte, tmp_path, model=backbone("deberta-v2"), method=method, optimizer="ivon",
        criterion=criterion,
    )  # fmt: skip
    torch.manual_seed(5)
    if method == "full":
        model = AutoModelForSequenceClassification.from_pretrained(run.model)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(
            backbone("deberta-v2"), num_labels=2
        )
        model = PeftModel.from_pretrained(base, run.adapter)
    model.eval()
    tokenizer = load_tokenizer(backbone("deberta-v2"))
    examples = load_task("rte", Path(rte), ("validation",))["validation"]
    batch = tokenizer(examples.first, examples.second, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    accuracy = (logits.argmax(-1) == torch.tensor(examples.labels)).double().mean().item()
    nll = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(examples.labels)).item()
    expected = run.read_json(run.result)["best_at_budget"]["metrics"]["validation"]
    assert accuracy == pytest.approx(expected["accuracy"])
    assert nll == pytest.approx(expected["nll"], abs=1e-5)


def test_the_posterior_holds_what_is_kept_and_the_head(backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path, model=backbone("deberta-v2"))
    tensors = load_file(run.posterior)
    report = RankReport.from_json(run.read_json(run.ranks), "ranks.json")
    for m in report.matrices:
        assert tensors[f"mean/{m.name}.lora_A"].shape == (m.rank, m.in_features)
        assert tensors[f"sigma/{m.name}.lora_B"].shape == (m.out_features, m.rank)
        assert tensors[f"sigma/{m.name}.lora_E"].shape == (m.rank, 1)
        assert sum(m.kept) == m.rank
        assert len(m.scores) == m.init_rank
    assert tensors["sigma/classifier.weight"].shape == (2, 32)
    assert bool((tensors["sigma/classifier.weight"] > 0).all())
    assert "drawn/pooler.dense.weight" in tensors


def test_scores_and_ranks_agree(backbone, rte, tmp_path):
    """Kept triplets outscore pruned ones when the best evaluation is the last allocation's."""
    run = run_of(backbone, rte, tmp_path, criterion="sensitivity", optimizer="adamw")
    report = RankReport.from_json(run.read_json(run.ranks), "ranks.json")
    # sensitivity averages rest in the final phase: the scores are those of the last allocation
    pairs = [(s, k) for m in report.matrices for s, k in zip(m.scores, m.kept, strict=True)]
    assert min(s for s, k in pairs if k) >= max(s for s, k in pairs if not k)


def test_a_finished_run_is_not_trained_again(backbone, rte, tmp_path, caplog):
    run = run_of(backbone, rte, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    with caplog.at_level(logging.INFO, "bayeslora"):
        again = run_of(backbone, rte, tmp_path)
    assert again.path == run.path
    assert "already trained" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before
    run_of(backbone, rte, tmp_path, overwrite=True)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} != before


def test_config_toml_gives_the_run_again(backbone, rte, tmp_path):
    """With its numbers typed out: same directory contents but for times."""
    run = run_of(backbone, rte, tmp_path)
    config = run.read_config()
    typed = {
        n: getattr(config, n)
        for n in ("warmup_steps", "boost_until_step", "t_init", "t_final", "delta_t")
    }
    other = run_of(backbone, rte, tmp_path / "again", **typed)
    assert torch.equal(
        load_file(run.posterior)["mean/classifier.weight"],
        load_file(other.posterior)["mean/classifier.weight"],
    )


@pytest.mark.parametrize(
    ("optimizer", "every", "crash"),
    [("ivon", "auto", 6), ("ivon", "1", 6), ("adamw", "2", 11), ("ivon", "4", 11)],
)
def test_resuming_repeats_the_run(optimizer, every, crash, backbone, rte, tmp_path, killed_at):
    """Stopped at a step and started again by the same command: to the bit, but for times."""
    changes = {"optimizer": optimizer, "criterion": "sensitivity", "checkpoint_every": every}
    whole = run_of(backbone, rte, tmp_path / "whole", **changes)
    with killed_at(crash):
        run_of(backbone, rte, tmp_path / "parts", **changes)
    steps = [path.name for path in tmp_path.glob("parts/*/*/seed-2021/checkpoint/*")]
    assert (steps == []) == (every == "auto"), "no checkpoint to resume from"
    resumed = run_of(backbone, rte, tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []
    assert len(resumed.read_json(resumed.environment)["resumed"]) == 1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resuming_without_an_allocation(method, backbone, rte, tmp_path, killed_at):
    changes = {"method": method, "optimizer": "ivon", "checkpoint_every": "5"}
    whole = run_of(backbone, rte, tmp_path / "whole", **changes)
    with killed_at(7):
        run_of(backbone, rte, tmp_path / "parts", **changes)
    resumed = run_of(backbone, rte, tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []


def test_a_moved_run_is_resumed_where_it_is(backbone, rte, tmp_path, killed_at):
    """With other options that do not count: how it is saved, logged and where."""
    whole = run_of(backbone, rte, tmp_path / "whole")
    with killed_at(9):
        run_of(backbone, rte, tmp_path / "a", checkpoint_every="4")
    shutil.move(tmp_path / "a", tmp_path / "b")
    resumed = run_of(backbone, rte, tmp_path / "b", checkpoint_every="1h", log_every=4)
    theirs = load_file(whole.posterior)
    assert all(
        torch.equal(value, theirs[name]) for name, value in load_file(resumed.posterior).items()
    )


def test_inputs_that_changed_are_refused(backbone, rte, tmp_path, killed_at):
    """The same names, other data, other weights: the result would be neither run's."""
    for name in ("data", "model"):
        shutil.copytree(rte if name == "data" else backbone("bert", 0.1), tmp_path / name)
    changes = {"data": str(tmp_path / "data"), "model": str(tmp_path / "model")}
    with killed_at(9):
        run_of(backbone, rte, tmp_path / "runs", checkpoint_every="4", **changes)
    table = tmp_path / "data" / "RTE" / "train.tsv"
    whole = table.read_text()
    table.write_text(whole.replace("w1 ", "w2 ", 1))
    with pytest.raises(RunDirError, match=r"the data or their tokens have changed since"):
        run_of(backbone, rte, tmp_path / "runs", **changes)
    table.write_text(whole)
    save_backbone(tmp_path / "model", "bert", dropout=0.1, seed=8)
    with pytest.raises(RunDirError, match=r"the backbone's weights have changed since"):
        run_of(backbone, rte, tmp_path / "runs", **changes)


def test_other_settings_in_the_same_directory_are_refused(backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path)
    shutil.copytree(run.path, tmp_path / "other")
    text = run.config.read_text().replace("lr = 0.5", "lr = 0.25")
    run.config.write_text(text)
    reseal(run.path)
    with pytest.raises(RunDirError, match=r"--lr 0\.25 there, 0\.5 now"):
        run_of(backbone, rte, tmp_path)


DIVERGING = {"optimizer": "adamw", "criterion": "sensitivity", "lr": 1e12, "warmup_steps": 6}


def states(directory):
    """The newest checkpoint under a directory: its place and its tensors."""
    newest = max(directory.glob("*/*/seed-2021/checkpoint/step-*"))
    return newest, load_file(newest / checkpoint.TENSORS)


def test_divergence_is_named_and_the_state_before_it_kept(backbone, rte, tmp_path, killed_at):
    """An absurd learning rate overflows after a while; the state before is on disk, and exact."""
    message = r"step (\d+): .*not finite.*lower --lr"
    with pytest.raises(NonFiniteError, match=message) as caught:
        run_of(backbone, rte, tmp_path / "a", log_every=100, **DIVERGING)
    bad_step = int(re.search(message, str(caught.value))[1])
    directory, tensors = states(tmp_path / "a")
    assert directory.name == f"step-{bad_step:06}"
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    run = directory.parents[1]
    assert not (run / "result.json").exists()
    assert not list(run.glob(".*"))
    # it is the state that a run has that is killed there: generators, sums and all
    with killed_at(bad_step):
        run_of(backbone, rte, tmp_path / "b", log_every=100, checkpoint_every="1", **DIVERGING)
    other, theirs = states(tmp_path / "b")
    assert other.name == directory.name
    assert all(torch.equal(value, theirs[name]) for name, value in tensors.items())
    a, b = (json.loads((d / checkpoint.SCALARS).read_text()) for d in (directory, other))
    assert (a["generators"], a["step"]) == (b["generators"], b["step"])
    # and the same command finds the same again
    with pytest.raises(NonFiniteError, match=f"^step {bad_step}: "):
        run_of(backbone, rte, tmp_path / "a", log_every=100, **DIVERGING)


def test_divergence_too_far_back_names_no_state_that_is_not_there(
    backbone, rte, tmp_path, monkeypatch
):
    monkeypatch.setattr("bayeslora_cli.training.state.Generators.rewind", lambda self, step: False)
    for directory, every in (("a", "100"), ("b", "1")):
        options = {"log_every": 100, "checkpoint_every": every, **DIVERGING}
        with pytest.raises(NonFiniteError) as caught:
            run_of(backbone, rte, tmp_path / directory, **options)
        saved = list((tmp_path / directory).rglob("checkpoint"))
        assert ("The last checkpoint is in" in str(caught.value)) == bool(saved) == (every == "1")


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_gpu_memory_says_what_to_lower(failure, backbone, rte, tmp_path, monkeypatch):
    """The last checkpoint stays, and the same command with less need of memory goes on."""
    whole = run_of(backbone, rte, tmp_path / "whole", checkpoint_every="4")
    original = TrainStep.__call__

    def greedy(self, step, micro_batches):
        if step == 9:
            raise failure
        original(self, step, micro_batches)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", greedy)
        with pytest.raises(BayesloraError, match="--gradient-checkpointing") as caught:
            run_of(backbone, rte, tmp_path / "parts", checkpoint_every="4")
    assert caught.value.exit_code == 1
    resumed = run_of(backbone, rte, tmp_path / "parts", checkpoint_every="4")
    assert differences(resumed.path, contents(whole.path)) == []


def test_a_wrong_model_or_target_leaves_nothing_behind(backbone, rte, tmp_path):
    for changes in ({"model": "no/such-model"}, {"target_modules": ("nonsense",)}):
        with pytest.raises(ModelError):
            run_of(backbone, rte, tmp_path / "out", **changes)
        assert not list((tmp_path / "out").rglob("*.toml"))


def test_max_length(backbone, rte, tmp_path, caplog):
    with pytest.raises(ConfigError, match="--max-length 300: the backbone takes 66 tokens"):
        run_of(backbone, rte, tmp_path, max_length=300)
    with caplog.at_level(logging.INFO, "bayeslora"):
        run = run_of(backbone, rte, tmp_path, max_length=None, max_steps=2)
    assert run.read_config().max_length == 66
    assert "lowered" in caplog.text


def test_seeds_differ_and_repeat(backbone, rte, tmp_path):
    def head(output, seed):
        run = run_of(backbone, rte, tmp_path / output, seed=seed)
        return load_file(run.posterior)["mean/classifier.weight"]

    first = head("a", 1)
    assert torch.equal(first, head("b", 1))
    assert not torch.equal(first, head("c", 2))


def test_evaluation_leaves_the_training_alone(backbone, rte, tmp_path):
    """More evaluations, the same parameters: no generator is touched and no triplet pruned."""
    heads = []
    for every in (1, 50):
        run_of(backbone, rte, tmp_path / str(every), eval_every=every)
        heads.append(states(tmp_path / str(every))[1]["bank/mean"])
    assert torch.equal(*heads)


def test_prediction_does_not_depend_on_the_batch_size(backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path)
    one, many = (evaluated(run.path, device="cpu", batch_size=n)["metrics"] for n in (1, 40))
    assert one["validation"]["nll"] == pytest.approx(many["validation"]["nll"], abs=1e-6)


def test_predictions_that_are_not_finite_are_an_error(backbone, rte, tmp_path):
    from bayeslora_cli.data.tokenization import tokenise
    from bayeslora_cli.evaluation.run_loading import load_run
    from tests.support.objectives import TWO_CLASSES

    run = run_of(backbone, rte, tmp_path, max_steps=2)
    network, tokenizer, _ = load_run(run, run.read_config(), TWO_CLASSES, "cpu")
    examples = load_task("rte", Path(rte), ("validation",))["validation"]
    split = tokenise(examples, tokenizer, 16, TWO_CLASSES)
    network.bank.mean.fill_(float("nan"))
    with network.bank.at_mean(), pytest.raises(NonFiniteError):
        logits_of(network, Batches(split, 8, torch.device("cpu")))


GLUE_FILES = Path(__file__).parents[3] / "shared"


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "folder", "expected"),
    [
        ("cola", "glue", {"validation": {"matthews", "nll"}}),
        ("mrpc", "glue", {"validation": {"accuracy", "f1", "nll"}}),
        ("sst2", "glue", {"validation": {"accuracy", "nll"}}),
        ("stsb", "glue", {"validation": {"pearson", "spearman", "pearson_spearman", "nll"}}),
        ("qnli", "glue-sub", {"validation": {"accuracy", "nll"}}),
        (
            "mnli",
            "glue-sub",
            {
                "validation_matched": {"accuracy", "nll"},
                "validation_mismatched": {"accuracy", "nll"},
            },
        ),
    ],
)
def test_real_tasks_end_to_end(task, folder, expected, backbone, tmp_path):
    """Three steps of a tiny backbone: reading, metrics by split, and the run read back."""
    data = GLUE_FILES / folder
    if not data.is_dir():
        pytest.skip("no real GLUE files")
    changes = {"task": task, "max_steps": 3, "eval_batch_size": 512}
    run = run_of(backbone, str(data), tmp_path, **changes)
    found = evaluated(run.path, device="cpu")["metrics"]
    best = run.read_json(run.result)["best_at_budget"]["metrics"]
    assert {split: set(metrics) for split, metrics in best.items()} == expected
    assert found.keys() == best.keys()
    for split, metrics in best.items():
        assert {k: found[split][k] for k in metrics} == pytest.approx(metrics, abs=1e-5)


@pytest.mark.realdata
def test_minilm_learns_sentiment(minilm, tmp_path):
    """Sixty steps on SST-2 take a real encoder from chance to well above it."""
    data = GLUE_FILES / "glue"
    if not data.is_dir():
        pytest.skip("no real GLUE files")
    typed = {
        "task": "sst2", "data": str(data), "model": minilm, "output": str(tmp_path),
        "optimizer": "adamw", "lr": 5e-3, "max_steps": 60, "batch_size": 16, "max_length": 32,
        "target_modules": ("query", "key", "value", "dense"), "device": "cpu",
    }  # fmt: skip
    run = train(resolve(typed))
    best = run.read_json(run.result)["best_at_budget"]
    assert best["metrics"]["validation"]["accuracy"] > 0.65


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 1},
        {"max_steps": 9, "t_init": 4, "t_final": 5},
        {"max_steps": 3, "batch_size": 200},
        {"max_steps": None, "epochs": 0.01},
        {"max_steps": 4, "grad_accum": 8, "train_samples": 2},
        {"max_steps": 4, "init_rank": 5, "target_rank": 5},
    ],
)
def test_odd_lengths_and_ranks(changes, backbone, rte, tmp_path):
    """Each ends with an adapter that PEFT opens; the budget is met even in a single step."""
    run = run_of(backbone, rte, tmp_path, **changes)
    base = AutoModelForSequenceClassification.from_pretrained(backbone("bert", 0.1), num_labels=2)
    PeftModel.from_pretrained(base, run.adapter)
    ranks = run.read_json(run.result)["ranks"]
    assert sum(ranks.values()) == changes.get("target_rank", 2) * len(ranks)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["adalora", "lora"])
def test_decoders(kind, method, backbone, rte, tmp_path):
    """Conv1D layers, causal pooling at the last token before the padding, no pad token of its own.

    The result must not depend on how much padding a batch happens to have.
    """
    criterion = "snr" if method == "adalora" else None
    run = run_of(
        backbone, rte, tmp_path, model=backbone(kind), method=method, criterion=criterion,
        target_modules=("all-linear",),
    )  # fmt: skip
    one, many = (evaluated(run.path, device="cpu", batch_size=n)["metrics"] for n in (1, 40))
    assert one["validation"]["nll"] == pytest.approx(many["validation"]["nll"], abs=1e-5)
    base = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=2)
    base.config.pad_token_id = 0
    model = PeftModel.from_pretrained(base, run.adapter).eval()
    tokenizer = load_tokenizer(backbone(kind))
    examples = load_task("rte", Path(rte), ("validation",))["validation"]
    batch = tokenizer(examples.first, examples.second, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    nll = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(examples.labels)).item()
    assert nll == pytest.approx(one["validation"]["nll"], abs=1e-5)
