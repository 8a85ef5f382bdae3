"""A trained network is cut to fewer ranks by one threshold for all its matrices."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import bayeslora_cli as bl
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.evaluation.cutting import gradients as module
from bayeslora_cli.evaluation.cutting.gradients import gradient_averages, training_rows
from bayeslora_cli.methods.adalora.pruning import prune
from bayeslora_cli.methods.cutting import SINGULAR_VALUES, cut, singular_factors
from bayeslora_cli.reports.run_summary import cut_text
from tests.api.test_training import options


@pytest.fixture(scope="module", params=["adalora", "lora"])
def run(request, backbone, rte, tmp_path_factory):
    more = {"max_steps": 6}
    if request.param == "adalora":
        more |= {"t_init": 1, "t_final": 2, "delta_t": 1}
    return bl.train(
        **options(
            backbone,
            rte,
            tmp_path_factory.mktemp("run"),
            method=request.param,
            target_rank=2,
            **more,
        )
    )


@pytest.fixture
def loaded(run):
    """Network and posterior, with updates that are not small."""
    network, _, posterior = run.load()
    draws = torch.Generator().manual_seed(0)
    adapters = network.bank.adapters(posterior.mean)
    adapters.copy_(torch.randn(adapters.shape, generator=draws))
    if network.bank.has_singular_values:
        network.bank.singular_values(posterior.mean).mul_(network.bank.mask)
    posterior.apply(network.bank)
    return network, posterior


def products(network, mean, mask):
    """scale B diag(E) A of each matrix, in float64."""
    found = {}
    for row, (name, layer) in zip(mask.bool(), network.adapters.items(), strict=True):
        a, e, b = (
            None if (s := network.bank.segments.get(f"{name}.lora_{p}")) is None else s.view(mean)
            for p in "AEB"
        )
        down = a.double() if e is None else (a * e).double()
        found[name] = layer.scale * b.double()[:, row] @ down[row]
    return found


def test_singular_factors():
    draws = torch.Generator().manual_seed(0)
    up, down = torch.randn(5, 3, generator=draws), torch.randn(3, 7, generator=draws)
    u, values, v = singular_factors(up, down)
    torch.testing.assert_close(u * values @ v, up.double() @ down.double())
    torch.testing.assert_close(values, torch.linalg.svdvals(up.double() @ down.double())[:3])
    assert singular_factors(torch.zeros(4, 0), torch.zeros(0, 6))[1].shape == (0,)


@pytest.mark.parametrize("rank", [0, 0.5, 1, 2])
def test_singular_values_are_kept_by_one_threshold(run, loaded, rank):
    network, posterior = loaded
    whole = products(network, posterior.mean, network.bank.mask)
    found = cut(run.directory, run.config, network, posterior, rank, SINGULAR_VALUES)
    n = len(whole)
    assert found.mask.sum() == round(rank * n)
    values = torch.stack([torch.linalg.svdvals(p)[: network.bank.rank] for p in whole.values()])
    threshold = values.flatten().sort(descending=True).values[: round(rank * n)]
    lost = values.square().sum() - threshold.square().sum()
    left = products(network, found.mean, found.mask)
    error = sum((left[name] - whole[name]).square().sum() for name in whole)
    torch.testing.assert_close(error, lost, rtol=1e-4, atol=1e-4)
    # what is masked is also zero
    every = products(network, found.mean, torch.ones_like(found.mask))
    for name in whole:
        torch.testing.assert_close(every[name], left[name])


def test_criteria(run, loaded):
    network, posterior = loaded
    if run.config.method == "lora":
        with pytest.raises(bl.errors.UserError, match=r"--by snr: .* no triplets to score"):
            cut(run.directory, run.config, network, posterior, 1, "snr")
        return
    found = cut(run.directory, run.config, network, posterior, 1, "snr")
    assert torch.equal(found.mask, prune(run.directory, network, 1))
    found = cut(run.directory, run.config, network, posterior, 1, "magnitude")
    scores = network.bank.triplet_scores(network.bank.adapters(posterior.mean).abs())
    kept = scores[found.mask == 1]
    others = scores[(found.mask == 0) & (network.bank.mask == 1)]
    assert len(kept) == len(found.mask)
    assert kept.min() >= others.max()
    point = dataclasses.replace(run.config, optimizer="adamw", criterion="magnitude")
    with pytest.raises(bl.errors.UserError, match="finds a point"):
        cut(run.directory, point, network, posterior, 1, "snr")
    with pytest.raises(bl.errors.UserError, match="choose one of"):
        cut(run.directory, run.config, network, posterior, 1, "best")


def test_gradients_are_computed_where_the_run_kept_none(
    run, loaded, rte, monkeypatch, caplog, tmp_path
):
    if run.config.method == "lora":
        return
    network, posterior = loaded
    tokenizer, config, bank = run.loaded.tokenizer, run.config, network.bank
    rows = training_rows(run.directory, config, run.task, ["sensitivity"])
    monkeypatch.setattr(module, "BATCHES", 3)
    caplog.set_level("INFO", "bayeslora")
    found = gradient_averages(network, tokenizer, config, rows)
    # by hand: |theta g| of each batch
    split = tokenise(rows, tokenizer, config.max_length, network.objective, packed=network.packed)
    observed = [
        (posterior.mean * gradient)[: bank.adapter_end].abs()
        for gradient in module.gradients(network, split, config.batch_size, 3)
    ]
    mean = sum(observed) / 3
    torch.testing.assert_close(found.sensitivity, mean)
    torch.testing.assert_close(found.uncertainty, sum((o - mean).abs() for o in observed) / 3)
    # with the run's class weights: a row of the second class counts three times one of the first
    asked = dataclasses.replace(config, class_weights=f"{run.task.classes[1]}=3")
    factors = torch.tensor(network.objective.class_weights(asked.class_weights, rows.labels))
    assert float(factors[1] / factors[0]) == pytest.approx(3)
    split = dataclasses.replace(split, weights=factors[split.labels])
    weighed = gradient_averages(network, tokenizer, asked, rows).sensitivity
    assert not torch.allclose(weighed, mean)
    by_hand = [
        (posterior.mean * gradient)[: bank.adapter_end].abs()
        for gradient in module.gradients(network, split, config.batch_size, 3)
    ]
    torch.testing.assert_close(weighed, sum(by_hand) / 3)
    kept = cut(run.directory, config, network, posterior, 1, "sensitivity", gradients=found)
    scores = bank.triplet_scores(found.sensitivity * found.uncertainty)
    assert kept.mask.sum() == len(kept.mask)
    assert scores[kept.mask == 1].min() >= scores[(kept.mask == 0) & (bank.mask == 1)].max()

    table = bl.cut_table(run.path, [1], ["sensitivity", "magnitude"])
    assert [row["by"] for row in table["cuts"]] == ["sensitivity", "magnitude"]
    export = run.export("lora", target_rank=1, by="sensitivity", overwrite=True)
    assert export.path.name == "lora-r1-sensitivity"
    assert "gradients of 3 batches of" in caplog.text
    (tmp_path / "RTE").mkdir()
    shutil.copy(Path(rte, "RTE", "dev.tsv"), tmp_path / "RTE")
    with pytest.raises(bl.errors.UserError, match="--by sensitivity: it needs gradients of train"):
        bl.cut_table(run.path, [1], ["sensitivity"], data=str(tmp_path))


def test_too_many(run, loaded):
    with pytest.raises(bl.errors.UserError, match="give 2 or less"):
        cut(run.directory, run.config, *loaded, 3, SINGULAR_VALUES)


def test_the_table(run):
    found = bl.cut_table(run.path, [2, 1], [SINGULAR_VALUES])
    assert [(c["by"], c["rank"], c["kept"]) for c in found["cuts"]] == [
        (SINGULAR_VALUES, 2, 2 * found["matrices"]),
        (SINGULAR_VALUES, 1, found["matrices"]),
    ]
    whole, same = found["whole"], found["cuts"][0]
    for name, value in whole["metrics"]["validation"].items():
        assert same["metrics"]["validation"][name] == pytest.approx(value, abs=1e-5)
    assert whole["metrics"]["validation"]["accuracy"] == run.metrics["validation"]["accuracy"]


def test_the_table_over_samples(run):
    if run.config.method == "lora":
        return
    own = run.config.criterion
    found = bl.cut_table(run.path, [2, 1], [own, SINGULAR_VALUES], samples=2, seed=3)
    sampled = run.evaluate(samples=2, seed=3).sampled["validation"]
    assert found["whole"]["sampled"]["validation"] == pytest.approx(sampled)
    by = {(row["by"], row["rank"]): row for row in found["cuts"]}
    assert by[own, 2]["sampled"] == found["whole"]["sampled"]  # nothing is cut
    assert by[own, 1]["sampled"] != by[own, 1]["metrics"]
    assert "sampled" not in by[SINGULAR_VALUES, 1]
    text = cut_text(found)
    assert text.count("validation accuracy, over samples") == 1
    last = text.splitlines()[-1].split()
    assert [float(x) for x in last] == [
        1,
        round(list(by[own, 1]["sampled"]["validation"].values())[-1], 4),
    ]


def test_an_export_of_a_cut(run):
    export = run.export("lora", target_rank=1, by=SINGULAR_VALUES, overwrite=True)
    manifest = json.loads((export.path / "manifest.json").read_text())
    assert export.path.name == "lora-r1-singular-values"
    assert sum(manifest["ranks"].values()) == len(manifest["ranks"])
