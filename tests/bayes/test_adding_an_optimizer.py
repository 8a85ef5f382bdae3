"""An optimizer of a user's own: one class, its builder and one entry, then trained and resumed."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.bayes.optimizer import BankOptimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS, OptimizerEntry, criteria_of
from tests.support.faults import contents, differences
from tests.training.test_loop import lines, run_of


class SignMomentum(BankOptimizer):
    """m <- 0.9 m + g; theta <- theta - lr sign(m), on the flat buffer."""

    posterior = False

    def __init__(self, bank):
        self.bank = bank
        self.momentum = torch.zeros_like(bank.mean[bank.weights])

    def sample(self, *, masked):
        self.bank.publish()

    def sigma(self):
        return None

    @torch.no_grad()
    def update(self, step, learning_rate, good):
        part = self.bank.weights
        momentum = 0.9 * self.momentum + self.bank.grad[0, part]
        mean = self.bank.mean[part] - learning_rate * momentum.sign()
        torch.where(good, momentum, self.momentum, out=self.momentum)
        torch.where(good, mean, self.bank.mean[part], out=self.bank.mean[part])

    def tensors(self):
        return {"momentum": self.momentum}


def build(config, bank, train_size, noise):
    return SignMomentum(bank)


@pytest.fixture(autouse=True)
def own_optimizer(monkeypatch):
    entry = OptimizerEntry(
        implementation="tests.bayes.test_adding_an_optimizer:build", posterior=False
    )
    monkeypatch.setitem(OPTIMIZERS, "sign", entry)


def test_it_trains_with_every_method_and_is_resumed(
    backbone, rte, tmp_path, killed_at
):  # fmt: skip
    assert set(criteria_of("adalora", "sign")) == {"sensitivity", "magnitude"}
    changes = {"optimizer": "sign", "lr": 3e-4, "checkpoint_every": "1"}
    for method in ("lora", "full"):
        run = run_of(backbone, rte, tmp_path / method, **changes, method=method)
        assert run.path.parent.name.startswith(f"rte-{method}-sign")
        assert run.read_result()["posterior"] is None
    whole = run_of(backbone, rte, tmp_path / "whole", **changes)
    assert "adalora-sign-sensitivity" in whole.path.parent.name
    losses = [line["loss"] for line in lines(whole.metrics) if "loss" in line]
    assert losses[-1] < losses[0]
    with killed_at(7):
        run_of(backbone, rte, tmp_path / "parts", **changes)
    resumed = run_of(backbone, rte, tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []
