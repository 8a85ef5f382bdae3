"""`bayeslora export` from a run directory to a directory for elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bayeslora_cli.config.catalogue import FORMATS
from bayeslora_cli.data.packing import token_batch
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import BayesloraError, DataError, ModelError, RunDirError, UserError
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.export import exporter
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.export.findings import describe_export
from bayeslora_cli.export.formats import lora_files
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.task import Examples
from tests.conftest import save_backbone
from tests.support.evaluation import evaluated
from tests.support.finished_runs import make_old, reseal
from tests.training.test_loop import run_of

FORMS = ["adalora", "lora", "lora-uniform", "lora-patterns", "merged", "onnx"]


def options(form, **changes):
    plain, _, variant = form.partition("-")
    names = {"uniform": "uniform_rank", "patterns": "patterns"}
    asked = {names[variant]: True} if variant else {}
    return ExportOptions(format=plain, device="cpu", **asked, **changes)


def exported(run, form, *, output=None, overwrite=False, push=None, **changes):
    return export_run(
        run.path, options(form, **changes), output=output, overwrite=overwrite, push_to_hub=push
    )


def grow(run):
    """Give the few-step run's adapters an effect that a check cannot miss."""
    tensors = load_file(run.posterior)
    with safe_open(run.posterior, "pt") as file:
        metadata = file.metadata()
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if re.fullmatch(r"mean/.*\.lora_[AEB]", name):
            tensors[name] = value + 0.2 * torch.randn(value.shape, generator=generator)
    save_file(tensors, run.posterior, metadata=metadata)
    reseal(run.path)


@pytest.fixture(scope="module")
def trained(backbone, rte, tmp_path_factory):
    """A finished run on a backbone whose checkpoint lacks its pooler."""
    output = tmp_path_factory.mktemp("runs")
    run = run_of(backbone, rte, output, model=backbone("deberta-v2"))
    grow(run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may harm."""
    shutil.copytree(trained.path, tmp_path / "run")
    return RunDir.open(tmp_path / "run")


def tree(directory):
    return {p: p.stat().st_mtime_ns if p.is_file() else None for p in directory.rglob("*")}


# ---- what an export is


@pytest.mark.parametrize("form", FORMS)
def test_every_format(form, run, monkeypatch):
    """Where it goes, what its manifest says, and that the code in its card runs and is right."""
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    directory, manifest = exported(run, form)
    assert directory == run.path / "export" / form
    assert json.loads((directory / "manifest.json").read_text()) == manifest
    hashes = {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in directory.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert manifest["files"] == hashes
    assert {"README.md", "tokenizer.json"} <= hashes.keys()
    assert manifest["check"]["inputs"] == "validation"
    assert manifest["check"]["rows"] == 32
    assert 0 < manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert (
        manifest["source"]["posterior_sha256"]
        == hashlib.sha256(run.posterior.read_bytes()).hexdigest()
    )
    assert all(manifest["versions"].values())
    assert ("opset" in manifest) == (form == "onnx")

    card = (directory / "README.md").read_text()
    assert str(describe_export(manifest)[-1]) in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace('["…"], ["…"]', '["w1 w2 w3", "w4"], ["w1", "w5 w6"]')
    assert "w5 w6" in code
    config, task = run.read_config(), run.read_task()
    network, tokenizer, _ = load_run(run, config, objective_of(task), "cpu")
    batch = tokenizer(["w1 w2 w3", "w4"], ["w1", "w5 w6"], padding=True, return_tensors="pt")
    network.module.eval()
    with torch.no_grad(), network.bank.at_mean():
        expected = network.logits(batch)
    monkeypatch.chdir(directory)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    torch.testing.assert_close(torch.as_tensor(names["logits"]), expected, rtol=1e-4, atol=1e-4)


def test_the_card_of_a_run_of_ones_own_sentences_and_of_a_score(backbone, tmp_path, monkeypatch):
    """One text column; regression, which has no classes."""
    rows = [{"text": f"w{i} w{i + 1}", "score": i / 3} for i in range(20)]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = run_of(
        backbone, None, tmp_path / "out", task="custom", train_file=str(tmp_path / "train.jsonl"),
        eval_file=str(tmp_path / "eval.jsonl"), label_column="score", max_steps=2, criterion="snr",
    )  # fmt: skip
    directory, manifest = exported(run, "merged")
    assert set(manifest["metrics"]["run"]["validation"]) >= {"pearson"}
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(directory)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (1, 1)


def test_a_fully_trained_run_is_merged_already(backbone, rte, tmp_path):
    run = run_of(
        backbone, rte, tmp_path, method="full", optimizer="adamw", criterion=None, max_steps=3
    )
    directory, _ = exported(run, "merged")
    ours, theirs = (load_file(d / "model.safetensors") for d in (directory, run.model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(UserError, match="a run of --method full can be exported as merged, onnx"):
        exported(run, "lora")


def test_lora_runs(backbone, rte, tmp_path):
    run = run_of(
        backbone, rte, tmp_path, method="lora", optimizer="adamw", criterion=None, max_steps=3
    )
    directory, manifest = exported(run, "lora-patterns")
    assert set(manifest["ranks"].values()) == {2}
    ours, theirs = (load_file(d / "adapter_model.safetensors") for d in (directory, run.adapter))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(
        UserError, match="--format adalora: a run of --method lora can be exported as lora, "
    ):
        exported(run, "adalora")
    with pytest.raises(UserError, match="--target-rank: a run of --method lora has no scores"):
        exported(run, "lora", target_rank=1)


def test_minilm_as_lora_in_plain_peft(minilm, rte, backbone, tmp_path):
    """A real encoder, its adapter on a fresh copy of it, against what `eval` says."""
    run = run_of(
        backbone, rte, tmp_path, model=minilm, max_steps=4, target_modules=("all-linear",),
        packing="off",
    )  # fmt: skip
    grow(run)
    directory, manifest = exported(run, "lora")
    assert manifest["source"]["backbone_sha256"]
    base = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    model = PeftModel.from_pretrained(base, str(directory)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config, task = run.read_config(), run.read_task()
    network, _, _ = load_run(run, config, objective_of(task), "cpu")
    batch = tokenizer(["It rains.", "No."], ["It is wet.", "Yes!"], padding=True,
                      return_tensors="pt")  # fmt: skip
    network.module.eval()
    with torch.no_grad(), network.bank.at_mean():
        expected, found = network.logits(batch), model(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_packed_minilm_as_lora_in_plain_peft(minilm, rte, backbone, tmp_path):
    """The same of a run on packed rows; in float64, as two ways to attend round otherwise."""
    run = run_of(
        backbone, rte, tmp_path, model=minilm, max_steps=4, target_modules=("all-linear",), seed=3
    )
    grow(run)
    directory, _ = exported(run, "lora")
    base = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    model = PeftModel.from_pretrained(base, str(directory)).eval().double()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config, task = run.read_config(), run.read_task()
    objective = objective_of(task)
    network, _, _ = load_run(run, config, objective, "cpu")
    assert network.packed
    pairs = ["It rains.", "No."], ["It is wet.", "Yes!"]
    padded = tokenizer(*pairs, padding=True, return_tensors="pt")
    split = tokenise(Examples(*pairs, None), tokenizer, 64, objective, packed=True)
    packed = token_batch(split, torch.arange(2), 0, torch.device("cpu"))
    network.module.eval()
    with torch.no_grad(), network.bank.at_mean():
        in_fp32 = network.logits(packed)
        network.module.double()
        for layer in network.adapters.values():
            layer.down, layer.up = layer.down.double(), layer.up.double()
        network.module.classifier.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
        found, expected = network.logits(packed), model(**padded).logits
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    torch.testing.assert_close(in_fp32.double(), expected, rtol=0, atol=5e-5)


def test_a_base_model_in_a_package(backbone, rte, tmp_path, monkeypatch, caplog):
    """Cards load it wherever the package is installed; a hub hears of what others lack."""
    package = tmp_path / "site" / "a_base_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copytree(backbone("bert"), package / "models" / "tiny")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = "package:a_base_package/models/tiny"
    run = run_of(backbone, rte, tmp_path / "runs", model=model, max_steps=2)
    monkeypatch.setattr(exporter, "upload", lambda *_: None)
    directory, _ = exported(run, "lora", push="me/adapter")
    warned = "the adapter's base model, package:a_base_package/models/tiny, is not on the hub"
    assert warned in caplog.text
    caplog.clear()
    exported(run, "merged", push="me/model")
    exported(run, "lora", output=tmp_path / "again")
    assert warned not in caplog.text
    for card in (run.card, directory / "README.md"):
        text = card.read_text()
        assert str(tmp_path) not in text
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        monkeypatch.chdir(card.parent)
        names = {}
        exec(compile(code.replace("…", "w1"), "README.md", "exec"), names)
        assert isinstance(names["model"], PeftModel)


def test_metrics_are_told_with_their_precision(backbone, rte, tmp_path):
    """A run in bf16 is exported in fp32, and the metrics of the training stay those of bf16."""
    run = run_of(backbone, rte, tmp_path, precision="bf16", max_steps=2)
    assert "at the final rank budget, in bf16:" in run.card.read_text()
    directory, manifest = exported(run, "lora")
    assert manifest["precision"] == {"run": "bf16", "export": "fp32"}
    assert "Metrics, measured in bf16:" in (directory / "README.md").read_text()
    directory, manifest = exported(run, "lora", target_rank=1)
    assert "Metrics, measured in fp32:" in (directory / "README.md").read_text()
    assert evaluated(run.path, device="cpu")["precision"] == "bf16"


def test_data_that_is_not_read(run, backbone, rte, tmp_path):
    own = tmp_path / "own.tsv"
    own.write_text("sentence1\tsentence2\nw1 w2\tw3\n")
    with pytest.raises(
        UserError, match=r"--data .*: has no effect, --eval-file .* is read instead"
    ):
        exported(run, "lora", file=str(own), data=rte)
    demo = run_of(backbone, None, tmp_path / "demo", task="demo", max_steps=2, data=None)
    with pytest.raises(UserError, match=r"--data .*: has no effect, the task demo is built in"):
        exported(demo, "lora", data=rte)
    assert not demo.exports.exists()


# ---- the check


def test_a_wrong_fold_leaves_nothing_behind(run, monkeypatch):
    """Folding with one per cent too much scale is found, and the run is as it was."""
    before = tree(run.path)
    fold = lora_files.fold_into_b
    monkeypatch.setattr(
        lora_files, "fold_into_b", lambda a, e, b, scale: fold(a, e, b, scale * 1.01)
    )
    with pytest.raises(BayesloraError, match="nothing is written") as raised:
        exported(run, "lora")
    assert raised.value.exit_code == 1
    assert tree(run.path) == before


def test_a_failed_check_keeps_an_earlier_export_and_uploads_nothing(run, monkeypatch):
    directory, _ = exported(run, "lora")
    before = tree(run.path)
    monkeypatch.setitem(FORMATS, "lora", replace(FORMATS["lora"], bound=-1.0))
    monkeypatch.setattr(exporter, "upload", lambda *_: pytest.fail("uploaded"))
    with pytest.raises(BayesloraError):
        exported(run, "lora", overwrite=True, push="me/adapter")
    assert tree(run.path) == before
    assert directory.is_dir()


def test_a_pooler_left_out_is_found(run, monkeypatch):
    """The base's own draw differs each time it is loaded: the seed of the run proves nothing."""
    monkeypatch.setattr(lora_files, "modules_to_save", lambda network: list(network.head))
    with pytest.raises(BayesloraError, match="nothing is written"):
        exported(run, "lora")


def test_random_inputs_where_the_data_is_gone(run, monkeypatch):
    text = run.config.read_text()
    run.config.write_text(re.sub(r'(?m)^data = ".*"$', 'data = "gone"', text))
    reseal(run.path)
    with pytest.raises(UserError, match=r"--data gone: .*; --check-inputs random checks without"):
        exported(run, "lora")
    with pytest.raises(DataError, match="--data gone"):
        exported(run, "lora", target_rank=1)
    with pytest.raises(UserError, match="leave out --check-inputs random"):
        exported(run, "lora", target_rank=1, check_inputs="random")
    _, manifest = exported(run, "lora", check_inputs="random", check_rows=7)
    assert manifest["check"]["inputs"] == "random"
    assert manifest["check"]["rows"] == 7


def test_data_from_elsewhere(run, rte, tmp_path):
    shutil.copytree(rte, tmp_path / "moved")
    _, manifest = exported(run, "lora", data=str(tmp_path / "moved"), check_rows=1)
    assert manifest["check"]["rows"] == 1
    own = tmp_path / "own.tsv"
    own.write_text("sentence1\tsentence2\nw1 w2\tw3\nw4\tw5\n")
    _, manifest = exported(run, "lora", file=str(own), overwrite=True)
    assert (manifest["check"]["inputs"], manifest["check"]["rows"]) == (str(own), 2)
    with pytest.raises(UserError, match="--target-rank: file has no labels"):
        exported(run, "lora", file=str(own), target_rank=1)


# ---- pruning further


def test_pruning_keeps_the_best_and_says_what_it_costs(run):
    report = RankReport.from_json(run.read_json(run.ranks), "ranks.json")
    n = len(report.matrices)
    metrics = evaluated(run.path, device="cpu")["metrics"]
    directory, manifest = exported(run, "adalora", target_rank=1)
    assert directory == run.path / "export" / "adalora-r1"
    assert sum(manifest["ranks"].values()) == n
    before = manifest["metrics"]["before_pruning"]["validation"]
    assert before.keys() == {"accuracy", "nll"}
    assert before == pytest.approx({k: metrics["validation"][k] for k in before}, abs=1e-6)
    after = manifest["metrics"]["after_pruning"]["validation"]
    assert after["nll"] != pytest.approx(metrics["validation"]["nll"], abs=1e-4)
    assert describe_export(manifest)[1].startswith(
        "after pruning to rank 1, in fp32: validation accuracy "
    )
    assert f"| validation | nll | {after['nll']:.4f} |" in (directory / "README.md").read_text()
    assert "Pruned to rank 1 after training." in (directory / "README.md").read_text()

    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["target_r"] == 1
    scored = []
    for m in report.matrices:
        kept = config["rank_pattern"].get(f"{m.name}.lora_E")
        if kept is None:  # the pooler, merged
            continue
        assert all(was or not now for was, now in zip(m.kept, kept, strict=True))
        scored += [(s, k) for s, k, was in zip(m.scores, kept, m.kept, strict=True) if was]
    assert min(s for s, k in scored if k) >= max(s for s, k in scored if not k)


def test_pruning_to_what_is_there_changes_nothing(run):
    _, manifest = exported(run, "merged", target_rank=2)
    assert manifest["metrics"]["before_pruning"] == manifest["metrics"]["after_pruning"]


def test_no_more_ranks_than_the_run_kept(run):
    with pytest.raises(UserError, match=r"--target-rank 3: .* the run kept 26; give 2 or less"):
        exported(run, "lora", target_rank=3)
    assert not run.exports.exists()


# ---- bad input


def damaged(name, text):
    """The file is others', and all that is checked is what it says."""

    def harm(run):
        make_old(run.path)
        (run.path / name).write_text(text)

    return harm


@pytest.mark.parametrize(
    ("harm", "changes", "error", "message"),
    [
        (lambda run: shutil.rmtree(run.path), {}, RunDirError, "no such directory"),
        (lambda run: run.config.unlink(), {}, RunDirError, "not a run directory"),
        (lambda run: run.result.unlink(), {}, RunDirError, "result.json is missing: the run has"),
        (lambda run: run.posterior.unlink(), {}, RunDirError, "posterior.safetensors is missing"),
        (damaged("posterior.safetensors", "?"), {}, RunDirError, "posterior.safetensors is corr"),
        (damaged("result.json", "{"), {}, RunDirError, "result.json is corrupt"),
        (damaged("task.json", "[]"), {}, RunDirError, "task.json is corrupt"),
        (damaged("environment.json", ""), {}, RunDirError, "environment.json is corrupt"),
        (damaged("ranks.json", "{}"), {"target_rank": 1}, RunDirError, "ranks.json: rank report"),
        (lambda run: run.ranks.unlink(), {"target_rank": 1}, RunDirError, "ranks.json is missing"),
        (damaged("config.toml", "novelty = 3\n"), {}, UserError, "config.toml.*novelty"),
        (lambda run: None, {"form": "zip"}, UserError, "--format zip: choose one of adalora, "),
        (lambda run: None, {"form": "merged-uniform"}, UserError, "--uniform-rank works only with"),
        (lambda run: None, {"check_inputs": "x"}, UserError, "--check-inputs x: choose data or"),
        (lambda run: None, {"push": "a/b/c"}, UserError, "--push-to-hub a/b/c: Repo id must"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_writes_nothing(harm, changes, error, message, run):
    harm(run)
    before = tree(run.path)
    with pytest.raises(error, match=message) as raised:
        exported(run, **{"form": "lora"} | changes)
    assert raised.value.exit_code == 2
    assert tree(run.path) == before


def test_another_checkpoint_than_the_run_was_trained_on(backbone, rte, tmp_path):
    """Same architecture, other weights: `eval` and `export` see it, and see it mended."""
    base = save_backbone(tmp_path / "base", "bert")
    run = run_of(backbone, rte, tmp_path / "runs", model=str(base), max_steps=2)
    sha256 = run.read_json(run.environment)["backbone_sha256"]
    model = AutoModel.from_pretrained(base)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(1.01)
    model.save_pretrained(base)
    message = f"{run.path} was trained with --model {base}: its weights are others now; put"
    with pytest.raises(ModelError, match=re.escape(message)):
        exported(run, "lora")
    with pytest.raises(ModelError, match=re.escape(message)):
        evaluated(run.path, device="cpu")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"no such directory; name its new place with --model$"):
        evaluated(run.path, device="cpu")
    assert not run.exports.exists()

    save_backbone(base, "bert")
    _, manifest = exported(run, "lora")
    assert manifest["source"]["backbone_sha256"] == sha256

    environment = run.read_json(run.environment)
    del environment["backbone_sha256"]  # a run of an earlier version
    run.environment.write_text(json.dumps(environment))
    make_old(run.path)
    _, manifest = exported(run, "lora", overwrite=True)
    assert manifest["source"]["backbone_sha256"] is None


def test_an_existing_directory(run, tmp_path):
    directory, _ = exported(run, "lora")
    before = tree(directory)
    with pytest.raises(RunDirError, match="exists; use --overwrite to replace it"):
        exported(run, "lora")
    assert tree(directory) == before
    (directory / "stale").write_text("")
    exported(run, "lora", overwrite=True)
    assert {p.name for p in tree(directory)} == {p.name for p in before}

    for taken in (run.path, tmp_path / "notes", tmp_path / "file"):
        if taken.name == "notes":
            taken.mkdir()
            (taken / "mine.txt").write_text("")
        elif taken.name == "file":
            taken.write_text("")
        before = tree(tmp_path)
        with pytest.raises(RunDirError, match="exists and is not an export; give another --output"):
            exported(run, "lora", output=taken, overwrite=True)
        assert tree(tmp_path) == before


def test_an_output_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="--output: cannot write"):
        exported(run, "lora", output=tmp_path / "file" / "export")


def test_an_empty_directory_may_be_given(run, tmp_path):
    (tmp_path / "empty").mkdir()
    directory, _ = exported(run, "lora", output=tmp_path / "empty")
    assert (directory / "manifest.json").is_file()


def test_onnx_without_its_packages(run, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'bayeslora\[onnx\]'"):
        exported(run, "onnx")


# ---- the hub


class Hub:
    """A stand-in that notes what it is asked."""

    def __init__(self, failing=None):
        self.calls, self.failing = [], failing

    def __call__(self):
        return self

    def create_repo(self, repository, *, exist_ok):
        self.calls.append(("create_repo", repository, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.failing is not None:
            raise self.failing
        names = {p.name for p in Path(folder_path).iterdir()}
        self.calls.append(("upload_folder", repo_id, names))


def test_uploading_comes_last(run, monkeypatch):
    import huggingface_hub

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    directory, _ = exported(run, "lora", push="me/adapter")
    assert hub.calls == [
        ("create_repo", "me/adapter", True),
        ("upload_folder", "me/adapter", {p.name for p in directory.iterdir()}),
    ]
    assert "manifest.json" in hub.calls[1][2]


def test_a_refused_upload_keeps_the_export(run, monkeypatch):
    import huggingface_hub

    hub = Hub(failing=OSError("403 Forbidden\nlong story"))
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    message = f"--push-to-hub me/adapter: 403 Forbidden. The export itself is complete: {run.path}"
    with pytest.raises(BayesloraError, match=re.escape(message)) as raised:
        exported(run, "lora", push="me/adapter")
    assert raised.value.exit_code == 1
    assert (run.exports / "lora" / "manifest.json").is_file()


# ---- the command line


def test_the_command(run, typed):
    arguments = ["export", run.path, "--format", "lora", "--uniform-rank", "--device", "cpu"]
    code, out, err = typed(*arguments, "--target-rank", 1)
    assert code == 0, err
    first, second, check, path = out.splitlines()
    assert first.startswith("before pruning, in fp32: validation accuracy")
    assert second.startswith("after pruning to rank 1, in fp32: validation accuracy")
    assert check.startswith("logits on 32 rows of validation: largest difference from the run ")
    assert Path(path) == run.exports / "lora-uniform-r1"

    code, out, err = typed(*arguments, "--target-rank", 1)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "--overwrite" in err

    code, out, err = typed(*arguments, "--json", "--check-rows", 5)
    assert code == 0, err
    found = json.loads(out)
    written = json.loads((run.exports / "lora-uniform" / "manifest.json").read_text())
    assert found == {"export": str(run.exports / "lora-uniform"), **written}
    assert found["check"]["rows"] == 5
    assert load_tokenizer(str(run.exports / "lora-uniform")).pad_token == "[PAD]"


def test_the_help_names_every_option_and_its_unit(typed):
    _, out, _ = typed("export", "--help-all")
    for text in (
        "What to write",
        "How to check it",
        "Where to",
        "--push-to-hub",
        "rows to compare",
    ):
        assert text in out
    said = " ".join(out.split())
    assert "may differ by the number that --format has in brackets, times the largest" in said
    bounds = {
        "adalora": 1e-5,
        "lora": 1e-5,
        "gguf": 1e-5,
        "merged": 1e-5,
        "onnx": 1e-4,
        "quantized": 0.0,
    }
    assert {name: entry.bound for name, entry in FORMATS.items()} == bounds
    assert ", ".join(f"{name} ({bound:g})" for name, bound in bounds.items()) in said
