"""A run's predictions over samples of its posterior, against loops written out."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bayeslora_cli.bayes import posterior
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError, NonFiniteError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling, predict_at_mean, predict_over_samples
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.calibration import auroc, gaussian_nll, nll
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.loading import load_examples
from tests.conftest import WORDS
from tests.support.evaluation import evaluated
from tests.support.finished_runs import reseal
from tests.training.test_loop import run_of

SAMPLES = 3


def noisier(run, factor):
    """Scale the sigma of a run's file, so that samples differ by more than rounding."""
    with safe_open(run.posterior, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in tensors.items():
        if name.startswith("sigma/"):
            value.mul_(factor)
    save_file(tensors, run.posterior, metadata=metadata)
    reseal(run.path)
    return run


@pytest.fixture(scope="module")
def run(backbone, rte, tmp_path_factory):
    """adalora with IVON on a made-up RTE."""
    return noisier(run_of(backbone, rte, tmp_path_factory.mktemp("run"), max_steps=6), 3)


@pytest.fixture(scope="module")
def scores_run(backbone, tmp_path_factory):
    """A regression on files of one's own."""
    directory = tmp_path_factory.mktemp("scores")
    rows = "".join(f"{WORDS[i % 9]} {WORDS[i % 7]},{i % 5 + 0.5}\n" for i in range(48))
    for name in ("train", "dev"):
        (directory / f"{name}.csv").write_text("text,score\n" + rows)
    changes = {"task": "custom", "train_file": str(directory / "train.csv"), "data": None,
               "eval_file": str(directory / "dev.csv"), "max_steps": 6}  # fmt: skip
    return noisier(run_of(backbone, None, directory, **changes), 3)


@pytest.fixture(scope="module")
def adamw_run(backbone, rte, tmp_path_factory):
    return run_of(backbone, rte, tmp_path_factory.mktemp("adamw"), optimizer="adamw", max_steps=3)


def opened(run):
    """Network, posterior and tokenised validation split of a run."""
    config, task = run.read_config(), run.read_task()
    network, tokenizer, kept = load_run(run, config, objective_of(task), "cpu")
    _, examples = load_examples(config, ("validation",), task=task)
    rows = tokenise(examples["validation"], tokenizer, config.max_length, objective_of(task))
    return network, kept, rows


def batches_of(rows, batch_size=16):
    return Batches(rows, batch_size, torch.device("cpu"))


def slow_samples(run, sampling):
    """Logits (S, n, outputs) in fp64: the module's own parameters, set one by one in fp64."""
    network, at, rows = opened(run)
    bank, module = network.bank, network.module.double().eval()
    for layer in network.adapters.values():
        layer.down = layer.up = None  # multiply with the parameters themselves
    for part in module.modules():
        part._forward_pre_hooks.clear()  # the head's inputs would go back to fp32
    generator = torch.Generator().manual_seed(sampling.seed)
    named = dict(module.named_parameters())
    batch = rows.batch(torch.arange(len(rows)))
    batch.pop("labels")
    found = []
    for _ in range(sampling.samples):
        noise = torch.randn(bank.size, generator=generator).double()
        theta = at.mean.double() + (sampling.temperature**0.5 * at.sigma.double()) * noise
        for name, segment in bank.segments.items():
            value = segment.view(theta).clone()
            matrix, _, part = name.rpartition(".lora_")
            if part == "E":
                index = [m.name for m in bank.matrices].index(matrix)
                value *= at.mask[index][:, None]
            named[name].data = value
        with torch.no_grad():
            found.append(module(**batch).logits)
    return torch.stack(found), rows


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_probabilities_are_averaged(run, temperature):
    sampling = Sampling(SAMPLES, temperature, seed=5)
    logits, rows = slow_samples(run, sampling)
    mean = logits.softmax(-1).mean(0)
    assert float(logits.std(0).max()) > 0.01
    network, at, _ = opened(run)
    found = predict_over_samples(
        network, at, {"a": batches_of(rows), "b": batches_of(rows, 7)}, sampling
    )
    torch.testing.assert_close(found["a"].values, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["a"].values, found["b"].values, rtol=1e-6, atol=1e-7)
    result = evaluated(run.path, sampling=sampling, device="cpu")
    assert result["sampled"]["validation"]["nll"] == pytest.approx(
        nll(mean.log(), rows.labels), abs=1e-6
    )
    assert result["sampled"].keys() == result["metrics"].keys()
    assert (result["samples"], result["temperature"], result["seed"]) == (SAMPLES, temperature, 5)
    assert result["ece_bins"] == 15
    assert result["posterior"] == run.read_json(run.result)["posterior"]


def test_scores_have_a_mean_and_a_variance(scores_run, tmp_path):
    sampling = Sampling(SAMPLES, seed=1)
    logits, rows = slow_samples(scores_run, sampling)
    scores = logits.squeeze(-1)
    variance = scores.var(0, correction=1)
    path = tmp_path / "p.jsonl"
    found = evaluated(scores_run.path, sampling=sampling, predictions=path, device="cpu")
    expected = gaussian_nll(scores.mean(0), rows.labels, variance + 0.5)
    assert found["sampled"]["validation"]["nll"] == pytest.approx(expected, abs=1e-5)
    assert "ece" not in found["sampled"]["validation"]
    assert "ece_bins" not in found
    assert found["observation_variance"] == 0.5
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prediction"] for row in written] == pytest.approx(
        scores.mean(0).tolist(), abs=1e-5
    )
    assert [row["variance"] for row in written] == pytest.approx(variance.tolist(), abs=1e-5)
    assert max(variance) > 0.01


@pytest.mark.parametrize("samples", [1, 4])
def test_at_temperature_0_samples_are_the_mean(run, samples):
    network, at, rows = opened(run)
    batches = {"x": batches_of(rows)}
    (mean,) = predict_at_mean(network, batches).values()
    (found,) = predict_over_samples(network, at, batches, Sampling(samples, 0.0)).values()
    assert torch.equal(found.values, mean.values)
    assert not found.uncertainty(sampled=True)["mutual_information"].any()


def test_seeds_repeat_and_differ_and_leave_the_rest_alone(run):
    state = torch.get_rng_state()
    found = [
        evaluated(run.path, sampling=Sampling(2, seed=seed), device="cpu") for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert found[0]["sampled"] != found[2]["sampled"]
    assert found[0]["metrics"] == found[2]["metrics"]


def test_the_network_is_as_before(run):
    network, at, rows = opened(run)
    before = network.bank.theta.clone()
    predict_over_samples(network, at, {"x": batches_of(rows)}, Sampling(2))
    assert torch.equal(network.bank.theta, before)


def test_data_is_read_once(run, monkeypatch):
    """Each batch is collated once, however many samples; the posterior's file is opened once."""
    collated, opened = [], []
    batch, load = TokenisedSplit.batch, posterior.load
    monkeypatch.setattr(TokenisedSplit, "batch", lambda *a: collated.append(len(a[1])) or batch(*a))
    monkeypatch.setattr(posterior, "load", lambda *a: opened.append(a[0]) or load(*a))
    evaluated(run.path, sampling=Sampling(3), device="cpu", batch_size=8)
    assert collated == [8] * 5
    assert opened == [run.posterior]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions(run, tmp_path):
    names = ["row", "prediction", "label", "p(entailment)", "p(not_entailment)", "entropy"]
    evaluated(run.path, predictions=tmp_path / "mean.csv", device="cpu")
    assert list(read(tmp_path / "mean.csv")[0]) == names
    sampling = Sampling(SAMPLES, seed=5)
    evaluated(run.path, sampling=sampling, predictions=tmp_path / "s.csv", device="cpu")
    logits, _ = slow_samples(run, sampling)
    probabilities = logits.softmax(-1)
    mean = probabilities.mean(0)
    entropy = torch.distributions.Categorical(mean).entropy()
    information = entropy - torch.distributions.Categorical(probabilities).entropy().mean(0)
    rows = read(tmp_path / "s.csv")
    assert list(rows[0]) == [*names, "mutual_information"]
    for place, row in enumerate(rows):
        assert float(row["p(entailment)"]) == pytest.approx(float(mean[place, 0]), abs=1e-5)
        assert float(row["entropy"]) == pytest.approx(float(entropy[place]), abs=1e-5)
        assert float(row["mutual_information"]) == pytest.approx(
            float(information[place]), abs=1e-5
        )


# ---- rows from outside


def write_rows(path, rows):
    path.write_text("\n".join(["sentence1,sentence2", *map(",".join, rows)]) + "\n")
    return str(path)


def test_the_same_rows_cannot_be_told_apart(run, tmp_path):
    _, examples = load_examples(run.read_config(), ("validation",), task=run.read_task())
    found = examples["validation"]
    path = write_rows(tmp_path / "same.csv", zip(found.first, found.second, strict=True))
    result = evaluated(run.path, sampling=Sampling(2), ood=path, device="cpu", batch_size=64)
    assert result["ood"]["rows"] == len(found)
    assert result["ood"]["mean"]["validation"] == pytest.approx({"entropy": 0.5}, abs=1e-3)
    assert result["ood"]["sampled"]["validation"] == pytest.approx(
        {"entropy": 0.5, "mutual_information": 0.5}, abs=1e-3
    )


def test_rows_from_outside_score_higher(run, tmp_path):
    """Against the files of predictions, and the metrics are as without them."""
    rows = [(" ".join(WORDS[i : i + 9]), WORDS[-i]) for i in range(1, 30)]
    path = write_rows(tmp_path / "other.csv", rows)
    sampling = Sampling(2, seed=8)
    plain = evaluated(run.path, sampling=sampling, predictions=tmp_path / "a.csv", device="cpu")
    assert "ood" not in plain
    evaluated(run.path, file=path, sampling=sampling, predictions=tmp_path / "b.csv", device="cpu")
    result = evaluated(run.path, sampling=sampling, ood=path, device="cpu")
    assert result["sampled"] == plain["sampled"]
    for kind in ("entropy", "mutual_information"):
        inside, outside = (
            torch.tensor([float(row[kind]) for row in read(tmp_path / name)], dtype=torch.float64)
            for name in ("a.csv", "b.csv")
        )
        got = result["ood"]["sampled"]["validation"][kind]
        assert got == pytest.approx(auroc(inside, outside), abs=0.01)
    # rows without labels: nothing to score, but to tell apart
    unlabelled = evaluated(run.path, file=path, sampling=sampling, ood=path, device="cpu")
    assert unlabelled["metrics"] == unlabelled["sampled"] == {}
    assert unlabelled["ood"]["sampled"]["file"]["entropy"] == pytest.approx(0.5, abs=1e-3)


def test_another_task(run, tmp_path, rte):
    """By name, with text columns of its own and single texts, from the directory of the data."""
    shutil.copytree(rte, tmp_path / "glue")
    (tmp_path / "glue" / "SST-2").mkdir()
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text("sentence\tlabel\nw1 w2\t1\nw3\t0\n")
    sst2 = evaluated(run.path, data=str(tmp_path / "glue"), ood="sst2", device="cpu")
    assert sst2["ood"]["rows"] == 2
    assert sst2["ood"]["mean"]["validation"].keys() == {"entropy"}
    assert "sampled" not in sst2
    with pytest.raises(DataError, match="holds no data for task cola"):
        evaluated(run.path, data=str(tmp_path / "glue"), ood="cola", device="cpu")


def test_another_task_beside_the_folder_of_ones_own(run, tmp_path, rte):
    """`--data` may name the run's own folder; it is never taken for another task's."""
    shutil.copytree(rte, tmp_path / "glue")
    data = str(tmp_path / "glue" / "RTE")
    # WNLI has RTE's columns, and labels are not needed
    with pytest.raises(DataError, match=r"--ood wnli: --data .*RTE holds only rte, .* no WNLI"):
        evaluated(run.path, data=data, ood="wnli", device="cpu")
    (tmp_path / "glue" / "WNLI").mkdir()
    dev = tmp_path / "glue" / "WNLI" / "dev.tsv"
    dev.write_text("index\tsentence1\tsentence2\n0\tw1 w2\tw3\n1\tw4\tw5\n2\tw6\tw7\n")
    found = evaluated(run.path, data=data, ood="wnli", device="cpu")
    assert found["ood"]["rows"] == 3, "without labels"
    assert found["metrics"]["validation"].keys() >= {"accuracy"}
    # and the other's folder alone, where the run's own rows are not read
    other = str(tmp_path / "glue" / "WNLI")
    rows = write_rows(tmp_path / "own.csv", [("w1", "w2")])
    found = evaluated(run.path, data=other, file=rows, ood="wnli", device="cpu")
    assert found["ood"]["rows"] == 3
    dev.write_text("index\tsentence1\tlabel\n0\tw1 w2\t1\n")
    with pytest.raises(DataError, match=r"WNLI/dev\.tsv, line 1: .*'sentence2' is missing"):
        evaluated(run.path, data=data, ood="wnli", device="cpu")


def test_the_demo_task(backbone, tmp_path, rte):
    """A demo run is held against its own split by default, another run only when asked."""
    run = run_of(backbone, None, tmp_path, task="demo", max_steps=2, data=None)
    found = evaluated(run.path, sampling=Sampling(1), device="cpu", batch_size=512)
    assert found["ood"]["source"] == "ood"
    assert found["ood"]["rows"] == 450
    assert found["ood"]["sampled"].keys() == {"validation"}
    for changes in ({"sampling": None}, {"split": "ood"}):
        changes = {"sampling": Sampling(1), **changes}
        assert "ood" not in evaluated(run.path, device="cpu", batch_size=512, **changes)
    found = evaluated(run.path, ood="demo", device="cpu", batch_size=450)
    assert found["ood"]["mean"]["validation"] == pytest.approx({"entropy": 0.5}, abs=1e-3)


def test_scores_from_outside(scores_run):
    ood = scores_run.read_config().eval_file
    found = evaluated(scores_run.path, sampling=Sampling(2), ood=ood, device="cpu", batch_size=64)
    assert found["ood"]["sampled"]["validation"] == pytest.approx({"variance": 0.5}, abs=1e-3)


# ---- faults


def test_what_a_user_can_mend(run, adamw_run, scores_run, tmp_path):
    sampling = Sampling(2)
    with pytest.raises(UserError, match="--samples 2: the run was trained with adamw"):
        evaluated(adamw_run.path, sampling=sampling, device="cpu")
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"--temperature .*: give a number of 0 or more"):
            evaluated(run.path, sampling=Sampling(2, temperature), device="cpu")
    for few in (None, Sampling(1)):
        with pytest.raises(UserError, match=r"--ood x: a score's .* variance; give --samples 2"):
            evaluated(scores_run.path, sampling=few, ood="x", device="cpu")
    with pytest.raises(UserError, match="--reliability: custom predicts a score"):
        evaluated(scores_run.path, reliability=True, device="cpu")
    with pytest.raises(DataError, match="--ood ood: rte has no such split; give another task"):
        evaluated(run.path, ood="ood", device="cpu")
    other = tmp_path / "other.csv"
    other.write_text("text,label\nw1,0\n")
    with pytest.raises(DataError, match=r"--ood .*other\.csv: has no column 'sentence1'"):
        evaluated(run.path, ood=str(other), device="cpu")
    with pytest.raises(DataError, match=r"--ood no\.csv: no such file"):
        evaluated(run.path, ood="no.csv", device="cpu")
    unlabelled = write_rows(tmp_path / "u.csv", [("w1", "w2")])
    for changes in ({}, {"sampling": sampling}):
        with pytest.raises(DataError, match="has no labels to score"):
            evaluated(run.path, file=unlabelled, device="cpu", **changes)
    for changes in ({}, {"ood": unlabelled}, {"predictions": tmp_path / "p.csv"}):
        with pytest.raises(DataError, match=r"--reliability: file of rte has no labels .*; leave"):
            evaluated(run.path, file=unlabelled, reliability=True, device="cpu", **changes)
    assert not list(run.path.glob(".*"))


def test_a_run_that_has_not_finished(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match=r"result\.json is missing: the run has not finished"):
        evaluated(copy, sampling=Sampling(1), device="cpu")


def test_overflow_is_told(run):
    with pytest.raises(NonFiniteError, match=r"--temperature 1e\+60: a sample's prediction is not"):
        evaluated(run.path, sampling=Sampling(1, 1e60), device="cpu")


def test_options_without_effect_are_refused(run, scores_run, backbone, rte, tmp_path):
    path = write_rows(tmp_path / "u.csv", [("w1", "w2")])
    for split in ("validation", "test"):
        with pytest.raises(UserError, match=f"--split {split}: --eval-file .* is read instead"):
            evaluated(run.path, split=split, file=path, ood=path, device="cpu")
    with pytest.raises(
        UserError, match=r"--data .*: has no effect, --eval-file .* is read instead"
    ):
        evaluated(run.path, data=rte, file=path, ood=path, device="cpu")
    with pytest.raises(UserError, match=r"--data .*: has no effect, the run has files of its own"):
        evaluated(scores_run.path, data=rte, device="cpu")
    demo = run_of(backbone, None, tmp_path, task="demo", max_steps=2, data=None)
    for ood in (None, "ood", path):
        with pytest.raises(UserError, match=r"--data .*: has no effect, the task demo is built in"):
            evaluated(demo.path, data=rte, ood=ood, device="cpu")
    # another task's rows are there
    found = evaluated(demo.path, data=rte, ood="rte", device="cpu", batch_size=512)
    assert found["ood"]["rows"] == 40
    found = evaluated(run.path, data=rte, file=path, ood="rte", device="cpu")
    assert found["ood"]["rows"] == 40


def test_what_the_training_was_told_is_not_taken_for_typed(run, scores_run, tmp_path):
    """Messages name the run, and no option that `eval` lacks as if it could be given."""

    def moved(run, old):
        copy = shutil.copytree(
            run.path, tmp_path / f"{run.path.name}-{len(list(tmp_path.iterdir()))}"
        )
        text = (copy / "config.toml").read_text()
        assert old in text
        (copy / "config.toml").write_text(text.replace(old, "/gone"))
        reseal(copy)
        return copy

    for path, option, split in (
        (moved(run, run.read_config().model), "--model /gone", None),
        (moved(run, run.read_config().data), "--data /gone", None),
        (moved(scores_run, scores_run.read_config().train_file), "--train-file /gone", "train"),
        (moved(scores_run, scores_run.read_config().eval_file), "--eval-file /gone", None),
    ):
        with pytest.raises(UserError, match=f"^{path} was trained with {option}: no such "):
            evaluated(path, split=split, device="cpu")
    with pytest.raises(UserError, match=r"^--data /nope: no such directory"):
        evaluated(run.path, data="/nope", device="cpu")
    own = tmp_path / "own.csv"
    own.write_text("txt,score\nw1,0.5\n")
    with pytest.raises(UserError, match="has no column 'text'") as raised:
        evaluated(scores_run.path, file=str(own), device="cpu")
    assert "--text-columns" not in str(raised.value)


def test_the_result_holds_the_summary(run, adamw_run):
    result = run.read_json(run.result)
    assert result["training_rows"] == 64
    assert result["posterior"]["note"].startswith("the Hessian has stayed near its initial value")
    low, high = (result["posterior"]["hessian_over_h0"][q] for q in ("q05", "q95"))
    # b2 = 0.99999 cannot move an average of six steps by more than that, with an h of order 1
    assert 0.999 < low <= high < 1.001
    assert RunDir.open(adamw_run.path).read_json(adamw_run.result)["posterior"] is None
