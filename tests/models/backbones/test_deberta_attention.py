"""Our disentangled attention against transformers': the same numbers, and nothing uncapturable."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2ForSequenceClassification,
    build_relative_position,
)

from bayeslora_cli.methods.adalora.method import adalora_linear
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.backbones.deberta_attention import replace_attention
from bayeslora_cli.models.encoders import relative_attention
from bayeslora_cli.models.encoders.relative_attention import RelativeAttention
from bayeslora_cli.models.encoders.relative_positions import position_rows
from tests.conftest import KINDS

LAYERS = 2
LONGEST = 66  # positions of the tiny backbones
PROJECTIONS = ("query_proj", "key_proj", "value_proj")
BOTH = {"share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
CONFIGS = {
    "v3": {},  # logarithmic buckets from 5 tokens on
    "v3 with one mid": {"position_buckets": 3},
    "no buckets": {"position_buckets": -1},
    "few positions": {"position_buckets": -1, "max_relative_positions": 6},
    "own projections": {"share_att_key": False},
    "own c2p": {"share_att_key": False, "pos_att_type": ["c2p"]},
    "own p2c": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "shared c2p": {"pos_att_type": ["c2p"]},
    "shared p2c": {"pos_att_type": ["p2c"]},
    "neither": {"pos_att_type": []},
    "v2 with a convolution": {"conv_kernel_size": 3, "norm_rel_ebd": "none"},
}


def classifier(seed=0, **options):
    """A tiny random classifier in float64; embeddings large enough for the scores to matter."""
    config = DebertaV2Config(
        **{**KINDS["deberta-v2"], "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
        | {"num_labels": 3} | options
    )  # fmt: skip
    torch.manual_seed(seed)
    module = DebertaV2ForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4)
    return module


def replaced(original, count=LAYERS, **options):
    module = copy.deepcopy(original)
    assert replace_attention(module, **options) == count
    return module


def batch_of(lengths, seed=0):
    """Random tokens, rows of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(0, KINDS["deberta-v2"]["vocab_size"], (len(lengths), width),
                        generator=generator)  # fmt: skip
    inside = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": inside.long()}


def adapt(module):
    """Adapters, nowhere zero, on what the engine adapts; all else frozen."""
    module.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for layer in [m for m in module.modules() if hasattr(m, "query_proj")]:
        for name in PROJECTIONS:
            adapter = adalora_linear(DenseLinear(getattr(layer, name)), 3, 32.0, generator).double()
            with torch.no_grad():
                adapter.lora_E.normal_(generator=generator)
                adapter.lora_B.normal_(generator=generator)
            setattr(layer, name, adapter)
    return module


def run(module, batch):
    """Logits, and the gradient of every trained parameter, zero where there is none."""
    module.zero_grad()
    logits = module(**batch).logits
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype, device=logits.device)
    weights = weights.view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def assert_same(one, other, batch):
    logits, gradients = run(one, batch)
    other_logits, other_gradients = run(other, batch)
    torch.testing.assert_close(other_logits, logits, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            other_gradients[name], gradient, rtol=1e-10, atol=1e-10,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.fixture(params=["plain", "fused"])
def way(request, monkeypatch):
    """Each of the two ways to attend; torch computes the fused one by products on a CPU."""
    monkeypatch.setattr(relative_attention, "_is_worth_fusing", lambda *_: request.param == "fused")
    return request.param


LENGTHS = [[1], [2, 1], [4, 4], [5, 1, 3], [6], [7, 2], [13, 13, 1], [37, 20], [66, 5]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_all_gradients(options, lengths, way):
    original = classifier(**options)
    assert_same(original, replaced(original), batch_of(lengths))


@pytest.mark.parametrize("lengths", [[5, 3], [37, 20]], ids=str)
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_with_adapters(options, lengths, way):
    """Position projections go through the adapted layers, forward and back."""
    original = classifier(**options)
    ours = adapt(replaced(original))
    attention = ours.deberta.encoder.layer[0].attention.self
    assert isinstance(attention, RelativeAttention)
    assert isinstance(attention.query_proj, LowRankLinear)
    assert_same(adapt(original), ours, batch_of(lengths))


ORIGINALS = {name: classifier(**options) for name, options in CONFIGS.items()}
OURS = {name: replaced(original) for name, original in ORIGINALS.items()}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_any_batch(name, lengths, seed):
    assert_same(ORIGINALS[name], OURS[name], batch_of(lengths, seed))


def test_a_mask_of_pairs(way):
    """A three-dimensional mask says which query sees which key; one that sees none sees all."""
    original = classifier()
    batch = batch_of([9, 9])
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 9, 9, generator=generator) < 0.5).long()
    mask[:, 3] = 0
    embedded = original.deberta.embeddings(batch["input_ids"])
    out = [
        m.deberta.encoder(embedded, mask).last_hidden_state for m in (original, replaced(original))
    ]
    torch.testing.assert_close(*out, rtol=1e-10, atol=1e-10)


def test_longer_than_announced():
    original = classifier()
    assert_same(original, replaced(original, max_length=4), batch_of([30, 11]))


def test_a_smaller_precision_is_kept(way):
    ours = replaced(classifier()).bfloat16()
    embedded = torch.randn(2, 9, 32, dtype=torch.bfloat16)
    out = ours.deberta.encoder(embedded, torch.ones(2, 9)).last_hidden_state
    assert out.dtype == torch.bfloat16


# ---- positions


@given(
    reach=st.integers(1, 600),
    buckets=st.integers(2, 300),
    longest=st.integers(2, 600),
)
def test_rows_are_transformers_buckets(reach, buckets, longest):
    if longest - 1 <= buckets // 2:
        longest = buckets // 2 + 2  # transformers divides by the logarithm of their ratio
    rows = position_rows(reach, buckets, buckets, longest)
    tokens = torch.empty(reach, 1)
    theirs = build_relative_position(tokens, tokens, buckets, longest)[0]  # query - key
    first, last = theirs[0].flip(0), theirs[:, 0]  # positions 1 - reach ... 0, 0 ... reach - 1
    expected = torch.cat((first, last[1:])) + buckets
    assert torch.equal(rows[1:], expected.clamp(0, 2 * buckets - 1))


@given(reach=st.integers(1, 80), span=st.integers(1, 40))
def test_rows_without_buckets(reach, span):
    expected = [min(max(r + span, 0), 2 * span - 1) for r in range(-reach, reach)]
    assert position_rows(reach, span, -1, span).tolist() == expected


# ---- what a graph can hold


class Seen(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "nonzero", "lift_fresh"}  # the host reads, or sends a value
SCATTERING = {  # sums in no fixed order on a GPU, forward or back
    "gather", "scatter", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_put",
    "index_put_", "_index_put_impl_", "embedding_dense_backward",
}  # fmt: skip


@pytest.mark.parametrize("length", [5, 40])
def test_nothing_waits_and_nothing_scatters(length):
    """With the embeddings frozen, as adapters leave them."""

    def operators(module):
        adapt(module)
        batch = batch_of([length, 2])
        with Seen() as seen:
            run(module, batch)
        return seen.names

    original = classifier()
    assert not operators(replaced(original)) & (WAITING | SCATTERING)
    # the control; transformers 5.17 sends its scalars from scripts, which nobody sees into
    assert {"gather", "scatter_add"} <= operators(original)


@pytest.mark.parametrize("length", [5, 40])
def test_compiles_in_one_graph(length, way):
    original = adapt(classifier())
    ours = adapt(replaced(classifier()))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=False)
    batch = batch_of([length, 2])
    logits, gradients = run(original, batch)
    ours.zero_grad()
    found = compiled(**batch).logits
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


# ---- dropout


class Square(nn.Dropout):
    """Stands where dropout stands, and can be compared."""

    def forward(self, input):
        return input * input * 3


@pytest.mark.parametrize("options", [{}, {"share_att_key": False}])
def test_dropouts_stand_where_they_stood(options):
    original = classifier(**options)
    plain = original(**batch_of([20, 7])).logits
    for module in list(original.modules()):
        for name in ("dropout", "pos_dropout"):
            if hasattr(module, "query_proj"):
                setattr(module, name, Square())
    batch = batch_of([20, 7])
    assert not torch.allclose(original(**batch).logits, plain)
    assert_same(original, replaced(original), batch)


@pytest.mark.parametrize("training", [True, False])
def test_the_fused_way_drops_out_too(training, monkeypatch):
    monkeypatch.setattr(relative_attention, "_is_worth_fusing", lambda *_: True)
    seen = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **options):
        seen.append(options["dropout_p"])
        return fused(*args, **options)

    monkeypatch.setattr(relative_attention.F, "scaled_dot_product_attention", spy)
    ours = replaced(classifier(attention_probs_dropout_prob=0.25)).train(training)
    ours(**batch_of([5]))
    assert seen == [0.25 if training else 0.0] * LAYERS


# ---- what is replaced, and what is not


def test_names_and_state_stay():
    original = classifier()
    ours = replaced(original)
    assert list(ours.state_dict()) == list(original.state_dict())
    names = [n for n, _ in original.named_modules()]
    assert [n for n, _ in ours.named_modules()] == names
    attention = ours.deberta.encoder.layer[0].attention.self
    assert attention.query_proj.weight.shape == (32, 32)
    assert replace_attention(ours) == 0, "once is enough"


def test_training_mode_is_kept():
    original = classifier().train()
    assert all(m.training for m in replaced(original).modules())


@pytest.mark.parametrize(
    "options", [{"relative_attention": False}, {"output_attentions": True}], ids=str
)
def test_left_alone(options):
    original = classifier(**options)
    module = replaced(original, count=0)
    assert not any(isinstance(m, RelativeAttention) for m in module.modules())
    assert_same(original, module, batch_of([6, 2]))


def test_an_attention_that_we_do_not_know_is_left_alone():
    module = classifier()
    del module.deberta.encoder.layer[1].attention.self.pos_ebd_size
    replaced(module, count=0)


def test_other_backbones_are_left_alone(backbone):
    module = AutoModelForSequenceClassification.from_pretrained(backbone("bert"))
    assert replace_attention(module) == 0


def test_shapes_alone_are_enough():
    """As `bayeslora train --dry-run` builds a network: on torch's meta device."""
    config = classifier().config
    with torch.device("meta"):
        module = DebertaV2ForSequenceClassification(config)
    assert replace_attention(module) == LAYERS
    assert all(b.is_meta for n, b in module.named_buffers() if n.endswith("attention.self.rows"))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [4, 40])
def test_captured(length, way):
    """The same logits and gradients from a CUDA graph, of inputs that it was not captured with."""
    ours = adapt(replaced(classifier())).cuda().float()
    example, batch = (
        {k: v.cuda() for k, v in batch_of(lengths, seed=length).items()}
        for lengths in ([length, length], [length, 3])
    )
    expected, gradients = run(ours, batch)
    static = {k: v.clone() for k, v in example.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    weights = torch.linspace(-1, 1, expected.numel(), device="cuda").view_as(expected)

    def step():
        for parameter in gradients:
            ours.get_parameter(parameter).grad.zero_()
        logits = ours(**static).logits
        (logits * weights).sum().backward()
        return logits

    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()
    for name, value in batch.items():
        static[name].copy_(value)
    graph.replay()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        found = ours.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-3)
