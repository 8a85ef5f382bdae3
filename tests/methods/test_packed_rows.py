"""A step's loss and gradients on packed rows against padded rows, for every method."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.data.packing import token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from tests.support.networks import LABELS, build, randomise

CPU = torch.device("cpu")
LENGTHS = (5, 9, 1, 12, 2, 7)


def text_rows():
    """Random rows of tokens of `tests.conftest`, none of them special."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor(LENGTHS)
    return TokenisedSplit(
        tokens=torch.randint(4, 64, (int(sizes.sum()),), generator=generator).int(),
        offsets=torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0))),
        token_types=None,
        labels=torch.arange(len(LENGTHS)) % len(LABELS.classes),
        pad_id=0,
        packed=True,
    )


def loss_and_gradients(model, batch, packing, **options):
    network, _ = build(model, packing=packing, **options)
    assert network.packed == (packing == "on")
    if network.bank.matrices:
        randomise(network)
    network.module.train()
    network.bank.zero_local()
    loss = network.objective.loss(network.logits(batch), batch)
    loss.backward()
    network.bank.collect()
    return loss.detach(), network.bank.local.clone()


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_packed_rows(method, kind, backbone):
    rows, everyone = text_rows(), torch.arange(len(LENGTHS))
    options = {"method": method, "criterion": None, "init_rank": 2, "optimizer": "adamw"}
    if method == "adalora":
        options |= {"criterion": "sensitivity", "init_rank": 3}
    model = backbone(kind)
    want = loss_and_gradients(model, rows.batch(everyone), "off", **options)
    got = loss_and_gradients(model, token_batch(rows, everyone, 0, CPU), "on", **options)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    largest = want[1].abs().max()
    assert largest > 0
    torch.testing.assert_close(got[1] / largest, want[1] / largest, rtol=1e-5, atol=1e-5)
