"""What evaluations keep of rows whose tokens are predicted."""

from __future__ import annotations

import pytest
import torch

from bayeslora_cli.data.splits import Batches
from bayeslora_cli.errors import NonFiniteError
from bayeslora_cli.evaluation.forward_passes import logits_of
from tests.support.decoders import CAUSAL, save_decoder, token_rows
from tests.support.networks import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("llama") / "tiny-llama")


def passes(model, rows, size):
    network, _ = build(model, CAUSAL)
    return logits_of(network, Batches(rows, size, CPU))


@pytest.mark.parametrize("size", [1, 4])
def test_each_row_has_its_sum_and_its_tokens(size, model):
    rows = token_rows()
    packed, padded = passes(model, rows, size), passes(model, token_rows(packed=False), size)
    assert torch.equal(packed[:, 1].long(), rows.counts)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    whole = passes(model, rows, 6)
    torch.testing.assert_close(packed, whole, rtol=1e-5, atol=1e-5)


def test_an_output_that_is_not_finite_is_an_error(model):
    network, _ = build(model, CAUSAL)
    network.module.get_output_embeddings().weight.data[:] = torch.nan
    with pytest.raises(NonFiniteError):
        logits_of(network, Batches(token_rows(), 6, CPU))
