"""`bl.Run`: a finished run is looked at, evaluated, sampled, predicted with, exported and drawn."""

from __future__ import annotations

import html.parser
import shutil

import pytest
import torch

import bayeslora_cli as bl
from bayeslora_cli.runs.atomic_write import write_json
from tests.api.test_training import options
from tests.conftest import WORDS
from tests.support.finished_runs import reseal

PAIRS = [("w1 w2", "w1"), ("w3", "w4 w5 w6"), ("w7 w8", "w9")]


@pytest.fixture(scope="module")
def run(backbone, rte, tmp_path_factory):
    return bl.train(
        **options(backbone, rte, tmp_path_factory.mktemp("run"), max_steps=8, t_init=2, t_final=2,
                  delta_t=1, log_every=2, eval_every=4)
    )  # fmt: skip


@pytest.fixture(scope="module")
def point(backbone, rte, tmp_path_factory):
    return bl.train(**options(backbone, rte, tmp_path_factory.mktemp("lora"), method="lora"))


def test_what_is_read_of_a_run(run):
    again = bl.Run(str(run.path))
    assert again.path == run.path
    assert again.config.criterion == "snr"
    assert again.task.name == "rte"
    assert again.metrics == again.result["best_at_budget"]["metrics"]
    assert set(again.metrics["validation"]) == {"accuracy", "nll"}
    assert [line["step"] for line in again.log] == sorted(line["step"] for line in again.log)
    assert sum(m.rank for m in again.ranks.matrices) == again.ranks.budget
    assert repr(again) == f"Run({str(run.path)!r})"


def test_history_and_scores(run):
    matrices = len(run.ranks.matrices)
    history = run.history
    assert history.ranks.shape == (len(history.steps), matrices)
    assert history.ranks[-1].tolist() == [m.rank for m in run.ranks.matrices]
    assert {"step", "name", "rank"} <= set(next(history.rows()))
    assert len(run.scores.values) == sum(m.init_rank for m in run.ranks.matrices)
    assert "W_q" in repr(history)
    assert "triplets" in repr(run.scores)


def test_constant_ranks_have_no_history(point):
    for name in ("history", "scores"):
        with pytest.raises(bl.errors.UserError, match="constant"):
            getattr(point, name)


def test_evaluate(run):
    found = run.evaluate()
    assert found.metrics["validation"]["accuracy"] == run.metrics["validation"]["accuracy"]
    assert found.sampled is None
    assert found.ood is None
    probabilities = found.predictions["validation"]
    labels = found.labels["validation"]
    assert probabilities.shape == (len(labels), 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(labels), dtype=torch.float64))
    accuracy = float((probabilities.argmax(1) == labels).double().mean())
    assert accuracy == pytest.approx(found.metrics["validation"]["accuracy"])
    assert set(found.uncertainty["validation"]) == {"entropy"}
    assert found.to_json()["run"] == str(run.path)
    assert "at the mean: validation accuracy" in repr(found)


def test_evaluate_over_samples(run):
    found = run.evaluate("validation", samples=3, seed=1, batch_size=7)
    assert set(found.sampled["validation"]) == set(found.metrics["validation"])
    uncertainty = found.uncertainty["validation"]
    assert set(uncertainty) == {"entropy", "mutual_information"}
    assert uncertainty["entropy"].shape == found.labels["validation"].shape
    assert not torch.equal(
        found.predictions["validation"], run.evaluate().predictions["validation"]
    )
    assert "over 3 samples" in repr(found)
    with pytest.raises(bl.errors.UserError, match=r"--temperature 2: .*--samples"):
        run.evaluate(temperature=2)
    with pytest.raises(bl.errors.UserError, match="must be at least 1"):
        run.evaluate(samples=0)


def test_predict_is_what_evaluate_finds(run, tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"{a},{b}" for a, b in PAIRS]
    file.write_text("\n".join(["sentence1,sentence2", *lines]) + "\n")
    table = tmp_path / "out.csv"
    for how in ({}, {"samples": 2, "seed": 3}):
        found = run.predict(PAIRS, **how)
        assert found.shape == (3, 2)
        assert found.dtype == torch.float64
        expected = run.evaluate(file=file, predictions=table, **how).predictions
        assert torch.equal(found, next(iter(expected.values())))


@pytest.mark.parametrize("texts", ["w1", ["w1"], [], [("w1", "w2", "w3")]])
def test_texts_of_another_form(run, texts):
    with pytest.raises(bl.errors.UserError, match="a list of pairs of texts: rte has sentence1"):
        run.predict(texts)


def test_single_texts(backbone, tmp_path):
    rows = "".join(f"{WORDS[i % 9]} {WORDS[i % 7]},{i % 5 + 0.5}\n" for i in range(24))
    (tmp_path / "rows.csv").write_text("text,score\n" + rows)
    changes = {"task": None, "data": None, "train_file": tmp_path / "rows.csv",
               "eval_file": tmp_path / "rows.csv"}  # fmt: skip
    run = bl.train(**options(backbone, None, tmp_path / "out", **changes))
    assert run.predict(["w1 w2", "w3"]).shape == (2,)
    with pytest.raises(bl.errors.UserError, match="give a list of texts: custom has text"):
        run.predict(PAIRS)


def test_the_posterior(run):
    posterior = run.posterior
    assert posterior.mean.shape == posterior.sigma.shape
    assert torch.equal(posterior.sample(temperature=0), posterior.mean)
    theta = posterior.sample(seed=1)
    assert torch.equal(theta, posterior.sample(seed=1))
    assert not torch.equal(theta, posterior.sample(seed=2))
    named = posterior.named(theta)
    assert sum(value.numel() for value in named.values()) == run.result["trainable_parameters"]
    assert int(posterior.mask.sum()) == run.ranks.budget
    assert posterior.summary() == run.result["posterior"]
    assert "samples" in repr(posterior)
    with pytest.raises(bl.errors.UserError, match="temperature -1"):
        posterior.sample(temperature=-1)


def test_a_sample_is_shown_to_the_network(run):
    network, tokenizer, posterior = run.load()
    batch = tokenizer(["w1 w2"], ["w3"], return_tensors="pt")
    theta = run.posterior.sample(seed=1)
    with torch.inference_mode(), network.bank.showing(theta):
        assert network.logits(batch).shape == (1, 2)
    assert posterior.kind == run.posterior.posterior.kind


def test_a_point_has_no_samples(point):
    assert point.posterior.sigma is None
    assert point.posterior.summary() is None
    assert "a point" in repr(point.posterior)
    with pytest.raises(bl.errors.UserError, match="a point and no posterior"):
        point.posterior.sample()
    with pytest.raises(bl.errors.UserError, match="no posterior to sample"):
        point.predict(PAIRS, samples=2)


def test_export(run, tmp_path):
    found = run.export("lora", tmp_path / "out", check_rows=4)
    assert found.path == tmp_path / "out"
    assert (found.path / "adapter_model.safetensors").is_file()
    assert found.manifest["format"] == "lora"
    assert found.manifest["options"]["check_rows"] == 4
    assert "logits" in found.describe()
    with pytest.raises(bl.errors.UserError, match="--format loora"):
        run.export("loora")
    with pytest.raises(bl.errors.UserError, match="check_row: no option of an export"):
        run.export("lora", check_row=3)


def test_no_run(tmp_path):
    with pytest.raises(bl.errors.RunDirError, match="no such directory"):
        bl.Run(tmp_path / "nothing")


# ---- in a notebook


class Cells(html.parser.HTMLParser):
    """Rows of cells, each with its text and style; every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", dict(attributes)["style"]])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1][0] += data


def test_the_heatmap(run):
    page = run._repr_html_()
    cells = Cells(page)
    assert str(run.path) in cells.text
    assert "triplets kept" in cells.text
    head, *rows = [[text for text, _ in row] for row in cells.rows]
    assert head == ["layer", "0", "1", "sum"]
    by_kind = {row[0]: row[1:] for row in rows}
    for matrix in run.ranks.matrices:
        if matrix.layer is not None:
            assert by_kind[matrix.kind][matrix.layer] == str(matrix.rank)
    inside = sum(m.rank for m in run.ranks.matrices if m.layer is not None)
    assert by_kind["sum"][-1] == str(inside)
    # each shaded cell has both colours, so neither a light nor a dark page hides its number
    for row in cells.rows:
        for _, style in row:
            assert ("background:#" in style) == (";color:#" in style)
    shaded = {style for row in cells.rows for _, style in row if "background" in style}
    assert len(shaded) > 1


def test_names_are_escaped(run, tmp_path):
    copy = tmp_path / "<b>&"
    shutil.copytree(run.path, copy)
    other = bl.Run(copy)
    report = other.ranks.to_json()
    report["matrices"][0]["kind"] = "<script>alert(1)</script>"
    write_json(other.directory.ranks, report)
    reseal(copy)
    page = other._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<script>alert(1)</script>" in Cells(page).text


def test_a_run_without_ranks_is_drawn(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    unfinished = bl.Run(tmp_path / "run")
    unfinished.directory.ranks.unlink()
    assert "has not finished" in unfinished._repr_html_()
    with pytest.raises(bl.errors.RunDirError, match="has not finished"):
        _ = unfinished.ranks
