"""Packed rows against padded rows, for each encoder of the allow-list, and all its gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bayeslora_cli.data.packing import collate, token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.models.backbones.deberta_attention import replace_attention
from bayeslora_cli.models.backbones.packing import (
    ATTENTION,
    ENCODERS,
    OWN_ATTENTION,
    packs,
    prepare_for_packing,
)
from bayeslora_cli.models.encoders import relative_attention
from bayeslora_cli.models.encoders.logits import _means, logits
from bayeslora_cli.models.encoders.packed_rows import PackedBatch
from bayeslora_cli.models.encoders.tags import tag_logits
from tests.support.tiny_models import SPECIAL, WORDS, tiny_config

CPU = torch.device("cpu")
PAD = SPECIAL.index("<pad>")
LENGTHS = (5, 9, 1, 12, 2, 9)
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
           "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
           "max_relative_positions": -1}  # fmt: skip
MODERN = {"classifier_pooling": "cls", "sliding_window": 3}
VARIANTS = {  # what differs from the configuration of the tiny models
    "deberta-v2": DEBERTA,
    "deberta-v2, c2p": DEBERTA | {"pos_att_type": ["c2p"]},
    "deberta-v2, p2c": DEBERTA | {"pos_att_type": ["p2c"], "share_att_key": False},
    "deberta-v2, positions": DEBERTA | {"position_biased_input": True},
    "modernbert": MODERN,
    "modernbert, mean": MODERN | {"classifier_pooling": "mean"},
}
NAMES = sorted(ENCODERS | VARIANTS.keys())


def build(name, made=AutoModelForSequenceClassification, **changes):
    kind = name.partition(",")[0]
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    config = tiny_config(kind)
    for field, value in (VARIANTS.get(name, {}) | changes).items():
        setattr(config, field, value)
    for field, value in config.to_dict().items():
        if "drop" in field and isinstance(value, float):
            setattr(config, field, 0.0)
    config.pad_token_id, config.num_labels = PAD, 3
    torch.manual_seed(1)
    model = made.from_config(config)
    for parameter in model.parameters():  # usual ones are too small to tell rows apart
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.config.pad_token_id = PAD
    replace_attention(model)
    return model


def rows_of_text(lengths=LENGTHS, *, types=True, blank=True, packed=True):
    """Random rows; the third is one padding token, as of an empty text."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor(lengths)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)))
    total = int(offsets[-1])
    tokens = torch.randint(len(SPECIAL), len(SPECIAL) + len(WORDS), (total,), generator=generator)
    if blank:
        tokens[offsets[2]] = PAD
        tokens[offsets[3] + 4] = PAD  # a text may name the padding token
    return TokenisedSplit(
        tokens=tokens.int(),
        offsets=offsets,
        token_types=torch.randint(0, 2, (total,), generator=generator).char() if types else None,
        labels=torch.arange(len(lengths)) % 3,
        pad_id=PAD,
        packed=packed,
    )


def takes_types(model):
    return any(
        name.endswith("token_type_embeddings") and table.num_embeddings > 1
        for name, table in model.named_modules()
        if isinstance(table, torch.nn.Embedding)
    )


def inputs(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def gradients(model, values):
    """All gradients of a loss, on one scale: by each largest one of the model."""
    model.zero_grad()
    slopes = torch.linspace(-1, 1, values.numel(), device=values.device)
    loss = (values * slopes.view_as(values)).sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in found.values())
    return {name: gradient / largest for name, gradient in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_packed_rows_are_padded_rows(name):
    model = build(name).double()
    assert packs("on", model.config, head=True)
    ours = copy.deepcopy(model)
    prepare_for_packing(ours, head=True)
    rows = rows_of_text(types=takes_types(model))
    everyone = torch.arange(len(rows))
    padded, packed = rows.batch(everyone), token_batch(rows, everyone, 0, CPU)
    for training in (False, True):
        model.train(training), ours.train(training)
        want, got = logits(model, inputs(padded)), logits(ours, inputs(packed))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        expected, found = gradients(model, want), gradients(ours, got)
        assert found.keys() == expected.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[parameter], rtol=1e-6, atol=1e-6, msg=parameter
            )
    assert want.std(0).min() > 1e-3, "the comparison would prove nothing"
    # with what fills a batch on a GPU
    filled = collate(rows, everyone, 0, fixed=True)
    del filled["longest"]
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, inputs(filled)), want, rtol=1e-6, atol=1e-6)
        # padded rows, as exports are compared on
        torch.testing.assert_close(logits(ours, inputs(padded)), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["bert", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta"]
)
def test_packed_words_are_padded_words(name):
    """Of rows whose words have tags, every token is read."""
    model = build(name, AutoModelForTokenClassification).double()
    rows = rows_of_text(types=takes_types(model), blank=False)
    places = torch.arange(len(rows.tokens))
    words = replace(rows, labels=None, counted=places % 3 > 0, tags=places % 3)
    order = torch.tensor([3, 0, 5, 1])
    padded = replace(words, packed=False).batch(order)
    want = tag_logits(model, padded)
    expected = gradients(model, want)
    prepare_for_packing(model, head=True)
    for fixed in (False, True):
        batch = collate(words, order, 0, fixed=fixed)
        if fixed:
            del batch["longest"]
        got = tag_logits(model, batch)
        count = len(padded["targets"])
        assert batch["targets"][:count].equal(padded["targets"])
        torch.testing.assert_close(got[:count], want, rtol=1e-6, atol=1e-6)
        for parameter, gradient in gradients(model, got[:count]).items():
            torch.testing.assert_close(gradient, expected[parameter], rtol=1e-6, atol=1e-6,
                                       msg=parameter)  # fmt: skip


@pytest.mark.parametrize("joined", [0, 200])
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("deberta")])
def test_groups_of_rows(name, joined, monkeypatch):
    """DeBERTa's rows in groups of one length, or padded to the longest of a few."""
    monkeypatch.setattr(relative_attention, "JOINED", joined)
    test_packed_rows_are_padded_rows(name)


@pytest.mark.parametrize("name", NAMES)
def test_rows_padded_for_the_attention_only(name):
    """As a GPU computes fp32 and dropout; here on the CPU, with what fills a batch."""
    model = build(name).double().train()
    rows = rows_of_text(types=takes_types(model))
    want = logits(model, inputs(rows.batch(torch.arange(len(rows)))))
    expected = gradients(model, want)
    prepare_for_packing(model, head=True)
    batch = collate(rows, torch.arange(len(rows)), 0, fixed=True)
    got = logits(model, inputs(batch))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for parameter, gradient in gradients(model, got).items():
        torch.testing.assert_close(
            gradient, expected[parameter], rtol=1e-6, atol=1e-6, msg=parameter
        )


@pytest.mark.parametrize("kind", sorted(ENCODERS - OWN_ATTENTION))
def test_our_attention_is_used(kind):
    model = build(kind)
    prepare_for_packing(model, head=True)
    assert model.config._attn_implementation == ATTENTION


def test_means_of_shapes():
    """As `--dry-run` runs the step: on a CPU only the offsets have values."""
    offsets = torch.tensor([0, 3, 5], dtype=torch.int32)
    with FakeTensorMode():
        batch = PackedBatch(rows=(offsets, None), first_tokens=torch.empty(2, dtype=torch.int64))
        assert _means(torch.empty(1, 5, 4), batch).shape == (2, 1, 4)
