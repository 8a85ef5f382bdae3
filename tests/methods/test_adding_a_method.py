"""A method of a user's own: one class and one entry, then trained, read back and exported."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeslora_cli.config.catalogue import METHODS, MethodEntry
from bayeslora_cli.export.exporter import export_run
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.method import Method
from bayeslora_cli.models.adapters.layer import LowRankLinear
from tests.support.evaluation import evaluated
from tests.support.networks import build
from tests.training.test_loop import run_of


def orthogonal_linear(base, rank, alpha, generator):
    """LoRA whose A starts with orthonormal rows, at scale alpha / sqrt(r)."""
    layer = LowRankLinear(base, rank, alpha / rank**0.5, singular_values=False)
    nn.init.orthogonal_(layer.lora_A, generator=generator)
    return layer


class OrthogonalLora(Method):
    """LoRA with another start and another scale."""

    peft_type = "LORA"

    def layer_maker(self, config):
        return orthogonal_linear


ORTHOGONAL = OrthogonalLora()


@pytest.fixture(autouse=True)
def own_method(monkeypatch):
    entry = MethodEntry(
        implementation="tests.methods.test_adding_a_method:ORTHOGONAL",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("lora",),
        options=("init_rank", "target_rank", "alpha", "target_modules"),
        fixed_rank=True,
    )
    monkeypatch.setitem(METHODS, "orthogonal", entry)


def test_trained_read_back_and_exported(backbone, rte, tmp_path):
    run = run_of(backbone, rte, tmp_path, method="orthogonal", target_rank=2)
    assert run.path.parent.name.startswith("rte-orthogonal-adamw-r2")
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    found = evaluated(run.path, device="cpu")["metrics"]["validation"]
    assert found["nll"] == pytest.approx(best["nll"], abs=1e-6)
    for name in ("lora", "merged"):  # reopened without this package, the same logits
        directory, manifest = export_run(run.path, ExportOptions(format=name, device="cpu"))
        assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
        assert (directory / "README.md").is_file()


def test_its_layers_start_as_it_says(backbone):
    network, _ = build(backbone("bert"), method="orthogonal", criterion=None, init_rank=2)
    for layer in network.adapters.values():
        torch.testing.assert_close(layer.lora_A @ layer.lora_A.t(), torch.eye(2))
