"""A run begins with what another has learned: the same predictions before the first step."""

from __future__ import annotations

import json

import pytest
import torch

import bayeslora_cli as bl
from bayeslora_cli.config.files.start_sources import model_of
from bayeslora_cli.config.values import ranks_text
from tests.api.test_training import options

PAIRS = [("w1 w2", "w1"), ("w3", "w4 w5 w6"), ("w7 w8", "w9")]
STILL = {"lr": 1e-12, "max_steps": 1, "t_init": 0, "t_final": 1, "hess_init": 1.0}


@pytest.fixture(scope="module")
def source(backbone, rte, tmp_path_factory):
    """A run of mixed ranks whose updates are not small."""
    return bl.train(
        **options(backbone, rte, tmp_path_factory.mktemp("run"), max_steps=12, t_init=1, t_final=3,
                  delta_t=1, lr=3.0, seed=3)
    )  # fmt: skip


@pytest.fixture
def following(backbone, rte, tmp_path):
    def train(start, **more):
        given = options(backbone, rte, tmp_path / "next", **more)
        del given["model"]
        return bl.train(**given, start_from=str(start))

    return train


def products(run):
    network, _, posterior = run.load()
    found = {}
    for name, layer in network.adapters.items():
        views = {
            p: s.view(posterior.mean)
            for p in "AEB"
            if (s := network.bank.segments.get(f"{name}.lora_{p}")) is not None
        }
        down = views["A"] * views["E"] if "E" in views else views["A"]
        found[name] = layer.scale * views["B"] @ down
    return found


def test_the_same_model_and_the_same_predictions(source, following):
    run = following(source.path, init_rank=6, target_rank=6, **STILL)
    assert run.config.model == source.config.model
    torch.testing.assert_close(run.predict(PAIRS), source.predict(PAIRS), rtol=1e-4, atol=1e-5)
    assert run.config.start_from == str(source.path)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_fewer_ranks_keep_the_largest_singular_values(source, following, method):
    before = products(source)
    ranks = {"init_rank": 1} if method == "adalora" else {}
    run = following(source.path, method=method, optimizer="adamw", target_rank=1, lr=1e-12,
                    max_steps=1, **ranks)  # fmt: skip
    for name, product in products(run).items():
        u, s, v = torch.linalg.svd(before[name], full_matrices=False)
        torch.testing.assert_close(product, s[0] * u[:, :1] @ v[:1], rtol=1e-3, atol=1e-5)


def test_kept_ranks(source, following):
    ranks = [m.rank for m in source.ranks.matrices]
    assert len(set(ranks)) > 1
    run = following(source.path, from_ranks="kept", init_rank=max(ranks), max_steps=3, t_final=1)
    assert [m.rank for m in run.ranks.matrices] == ranks


def test_kept_ranks_of_a_padded_adapter(source, following):
    ranks = [m.rank for m in source.ranks.matrices]
    exported = source.export("lora", overwrite=True)
    given = {"max_steps": 3, "t_final": 1}
    run = following(exported.path, from_ranks="kept", init_rank=max(ranks), **given)
    assert [m.rank for m in run.ranks.matrices] == ranks


@pytest.mark.parametrize("form", ["lora", "adalora", "merged"])
def test_from_an_export(source, following, form):
    exported = source.export(form, overwrite=True)
    run = following(exported.path, init_rank=6, target_rank=6, **STILL)
    torch.testing.assert_close(run.predict(PAIRS), source.predict(PAIRS), rtol=1e-3, atol=1e-4)


def test_the_posterior_as_prior(source, following):
    run = following(source.path, prior="from", init_rank=3, target_rank=2, max_steps=2, t_final=1)
    assert run.result["steps"] == 2
    # no learning: the precision is that of the prior and h0
    still = following(source.path, prior="from", init_rank=3, target_rank=3, **STILL)
    before, after = source.posterior, still.posterior
    name = next(n for n in before.named(before.mean) if "classifier" in n and n.endswith("weight"))
    ours = after.named(after.sigma)[name].double() ** -2
    old = before.named(before.sigma)[name].double() ** -2
    assert (ours > old).all()
    ess = still.config.ess or still.config.ess_per_example * still.result["training_rows"]
    torch.testing.assert_close(ours - old, torch.full_like(old, ess), rtol=0.02, atol=0)


def test_a_dry_run_says_what_begins_and_refuses_what_does_not_fit(source, backbone, rte, tmp_path):
    given = options(backbone, rte, tmp_path / "next") | {"start_from": str(source.path)}
    del given["model"]
    ranks = [m.rank for m in source.ranks.matrices]
    shown = f"{len(ranks)} of {len(ranks)} matrices, {ranks_text(ranks)}, and"
    assert shown in bl.plan(**given, init_rank=6).describe()
    with pytest.raises(bl.errors.UserError, match="has other parameters there"):
        bl.plan(**given, prior="from", init_rank=1, target_rank=1)
    assert not (tmp_path / "next").exists()


def test_refused(source, following, tmp_path):
    with pytest.raises(bl.errors.UserError, match=r"--from .*: no such directory"):
        following(tmp_path / "none")
    with pytest.raises(bl.errors.UserError, match="is no run, adapter or model"):
        following(tmp_path)
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    with pytest.raises(bl.errors.UserError, match="is a whole model, and --model roberta is anoth"):
        model_of(str(merged), "roberta")
    assert model_of(str(merged)) == str(merged)
    exported = source.export("lora", overwrite=True)
    with pytest.raises(bl.errors.UserError, match="has no posterior"):
        following(exported.path, prior="from", max_steps=2)
    config = exported.path / "adapter_config.json"
    held = json.loads(config.read_text())
    config.write_text(json.dumps(held | {"peft_type": "IA3"}))
    with pytest.raises(bl.errors.UserError, match="of kind IA3"):
        following(exported.path, max_steps=2)
