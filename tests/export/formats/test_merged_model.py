"""A merged module against the network that it was made of."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.export.formats.merged_model import merge
from tests.support.networks import batch_of, build, logits, randomise


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_a_merged_module_computes_what_the_network_did(kind, backbone):
    network, _ = build(backbone(kind))
    randomise(network)
    batch = batch_of()
    expected = logits(network, batch)
    module = merge(network, network.bank.mean, network.bank.mask)
    found = module.eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
