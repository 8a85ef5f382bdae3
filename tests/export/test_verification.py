"""What an export may differ by: its bound, or what fp32 can give; a wrong one is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5Model

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.export.formats.merged_model import merge
from bayeslora_cli.export.independent_reader import logits_of
from bayeslora_cli.export.verification import (
    ROUNDINGS,
    batches_of,
    compare,
    rounding_of,
    run_logits,
)  # fmt: skip
from tests.export.formats.test_all_formats import make, random_rows
from tests.support.networks import CPU
from tests.support.tiny_models import IDS, SIZES, tiny_tokenizer

BOUND = 1e-5
STD, SEED = 0.15, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """T5, whose attention takes no root of the width: large scores, and rounding of them."""
    directory = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=SIZES["vocab_size"], d_model=64, d_kv=32, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=IDS["pad"], eos_token_id=IDS["eos"], decoder_start_token_id=IDS["pad"],
    )  # fmt: skip
    torch.manual_seed(0)
    T5Model(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def network_of(model):
    """Adapters of such size that right computations differ by more than the bound."""
    network, _ = make(model, "all", target_modules=("all-linear",))
    generator = torch.Generator().manual_seed(SEED)
    network.bank.mean.add_(torch.empty(network.bank.size).normal_(std=STD, generator=generator))
    return network


def checked(model, change=lambda network: None, after=lambda merged: None, by=0.0):
    """Merge a changed network, change the result, and compare with what the network was."""
    network = network_of(model)
    batches = batches_of(random_rows(tiny_tokenizer(), 24, 40))
    expected = run_logits(network, batches)
    rounding = rounding_of(network, batches, expected)
    if by:  # more than rounding explains: some releases of transformers draw larger weights
        by = max(by, 2 * ROUNDINGS * rounding)
    change(network)
    merged = merge(network, network.bank.mean, network.bank.mask)
    with torch.no_grad():
        after(merged)
    reopened = logits_of(merged, CPU)
    return compare(
        expected, lambda batch: reopened(batch) + by, batches, bound=BOUND, inputs="x",
        rounding=rounding,
    )  # fmt: skip


def test_a_right_export_is_not_refused_for_rounding(model):
    check = checked(model)
    assert BOUND * check.largest_logit < check.max_difference < check.allowed


def flipped(network):
    """The sign of one layer's delta."""
    next(iter(network.adapters.values())).scale *= -1


def scaled(network):
    next(iter(network.adapters.values())).scale *= 1.01


def swapped(merged):
    """Two layers' weights."""
    first, second = (merged.transformer.encoder.block[i].layer[0].SelfAttention.v for i in (0, 1))
    first.weight, second.weight = second.weight, first.weight


@pytest.mark.parametrize(
    "wrong",
    [{"change": flipped}, {"change": scaled}, {"after": swapped}, {"by": 1e-3}],
    ids=["flipped", "scaled", "swapped", "added"],
)
def test_a_wrong_export_is_refused(wrong, model):
    with pytest.raises(BayesloraError, match="nothing is written"):
        checked(model, **wrong)


def test_measuring_leaves_the_network_as_it_was(model):
    network = network_of(model)
    before = {n: p.clone() for n, p in network.module.named_parameters()}
    mean = network.bank.mean.clone()
    batches = batches_of(random_rows(tiny_tokenizer(), 4, 12))
    assert 0 < rounding_of(network, batches, run_logits(network, batches)) < 1e-2
    assert all(torch.equal(p, before[n]) for n, p in network.module.named_parameters())
    assert torch.equal(network.bank.mean, mean)


def test_rounding_never_explains_a_large_difference():
    logits = [torch.tensor([[2.0, -1.0]])]

    def allowed(by, rounding, bound=BOUND):
        check = compare(
            logits, lambda _: logits[0] + by, [{}], bound=bound, inputs="x", rounding=rounding
        )
        return check.allowed

    assert allowed(0.0, rounding=1.0) == pytest.approx(2 * BOUND)
    assert allowed(1e-3, rounding=1.0) == pytest.approx(2e-3)
    for wrong in ({"by": 3e-3, "rounding": 1.0}, {"by": 1e-4, "rounding": 1e-6}):
        with pytest.raises(BayesloraError, match="nothing is written"):
            allowed(**wrong)
    with pytest.raises(BayesloraError, match="nothing is written"):
        allowed(1e-5, rounding=1.0, bound=0.0)
