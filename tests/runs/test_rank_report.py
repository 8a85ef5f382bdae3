"""`RankReport`: its JSON, and the names of the matrices of the usual backbones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.reports.ranks.grids import rank_grid
from bayeslora_cli.runs.rank_report import (
    SCHEMA,
    MatrixReport,
    RankReport,
    kind_of,
    kinds_of,
    layer_of,
)
from bayeslora_cli.training.artifacts import rank_report
from tests.support.networks import build

finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def matrices(draw):
    kept = draw(st.lists(st.booleans(), max_size=6))
    size = len(kept)
    return MatrixReport(
        name=draw(st.text(max_size=20)),
        layer=draw(st.none() | st.integers(0, 99)),
        kind=draw(st.text(max_size=5)),
        in_features=draw(st.integers(1, 9999)),
        out_features=draw(st.integers(1, 9999)),
        init_rank=size,
        rank=sum(kept),
        kept=tuple(kept),
        scores=draw(st.none() | st.lists(finite, min_size=size, max_size=size).map(tuple)),
        bits=draw(st.none() | st.dictionaries(st.text(max_size=2), st.integers(1, 32), min_size=1)),
    )


reports = st.builds(
    RankReport,
    step=st.integers(0, 10**6),
    budget=st.integers(0, 10**6),
    criterion=st.none() | st.text(max_size=9),
    matrices=st.lists(matrices(), max_size=3).map(tuple),
)
MATRIX = MatrixReport(
    name="encoder.layer.0.attention.self.query_proj", layer=0, kind="W_q", in_features=8,
    out_features=4, init_rank=3, rank=2, kept=(True, False, True), scores=(1.5, 0.0, 2.0),
)  # fmt: skip
REPORT = RankReport(step=7, budget=2, criterion="snr", matrices=(MATRIX,))


def written(report):
    """As it lies on the disk and comes back."""
    return json.loads(json.dumps(report.to_json(), allow_nan=False))


@settings(max_examples=80, deadline=None)
@given(reports)
def test_round_trip(report):
    assert RankReport.from_json(written(report), "ranks.json") == report


def test_keys():
    """Schema 1, for readers that are not this package: a change of keys is another schema."""
    found = written(REPORT)
    assert SCHEMA == 1
    assert list(found) == ["schema", "step", "budget", "criterion", "matrices"]
    assert list(found["matrices"][0]) == [
        "name", "layer", "kind", "in_features", "out_features", "init_rank", "rank", "kept",
        "scores",
    ]  # fmt: skip


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_other_schemas_are_refused(schema):
    value = written(REPORT) | {"schema": schema}
    with pytest.raises(RunDirError, match=f"there/ranks.json.*schema {schema}, not 1"):
        RankReport.from_json(value, "there/ranks.json")


def test_no_schema_is_refused():
    with pytest.raises(RunDirError, match=r"there/ranks.json.*schema None"):
        RankReport.from_json({}, "there/ranks.json")


def damaged():
    """Every key of both levels missing, one too many, and containers that are none."""
    for key in list(written(REPORT))[1:]:
        yield f"no {key}", lambda v, m, key=key: v.pop(key)
    for key in written(REPORT)["matrices"][0]:
        yield f"no matrix {key}", lambda v, m, key=key: m.pop(key)
    yield "extra", lambda v, m: v.update(extra=1)
    yield "extra in a matrix", lambda v, m: m.update(extra=1)
    for wrong in (None, 3, "text", [3], [None], ["text"]):
        yield f"matrices {wrong}", lambda v, m, wrong=wrong: v.update(matrices=wrong)
    for wrong in (None, 3):
        yield f"kept {wrong}", lambda v, m, wrong=wrong: m.update(kept=wrong)
    yield "scores 3", lambda v, m: m.update(scores=3)


@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in damaged()])
def test_corrupt_reports_are_refused(damage):
    value = written(REPORT)
    damage(value, value["matrices"][0])
    with pytest.raises(RunDirError, match=r"there/ranks.json is corrupt"):
        RankReport.from_json(value, "there/ranks.json")


WRONG = (None, True, 3, -1.5, "text", [], [3], {}, float("nan"))


@pytest.mark.parametrize("wrong", WRONG, ids=map(repr, WRONG))
@pytest.mark.parametrize("key", list(written(REPORT)["matrices"][0]))
def test_values_of_another_type_are_refused(key, wrong):
    """Or are as good as the right ones: nothing that reads the report has to look again."""
    value = written(REPORT)
    value["matrices"][0][key] = wrong
    try:
        found = RankReport.from_json(value, "ranks.json").matrices[0]
    except RunDirError:
        return
    allowed = {
        "name": ("text",), "kind": ("text",), "layer": (None, True, 3), "scores": (None,),
        "in_features": (True, 3), "out_features": (True, 3), "init_rank": (3,),
    }  # fmt: skip
    assert getattr(found, key) in allowed[key]


@pytest.mark.parametrize(
    "damage",
    [{"rank": 3}, {"init_rank": 4}, {"kept": [True, False]}, {"scores": [1.0, 2.0]}],
    ids=str,
)
def test_values_that_do_not_fit_together_are_refused(damage):
    value = written(REPORT)
    value["matrices"][0] |= damage
    with pytest.raises(RunDirError, match=r"there/ranks.json is corrupt: .*query_proj do not fit"):
        RankReport.from_json(value, "there/ranks.json")


# ---- names, of the libraries' own models so that a renamed layer shows

SMALL = {
    "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "pad_token_id": 0,
}  # fmt: skip
SIX = ["W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2"]
BACKBONES = {
    "deberta-v2": SMALL  # as in microsoft/deberta-v3-base
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    "bert": SMALL,
    "roberta": SMALL,
    "mpnet": SMALL,
    "distilbert": {"vocab_size": 50, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "electra": SMALL,
    "llama": SMALL,
    "modernbert": SMALL
    | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {
        "vocab_size": 50,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bart": {
        "vocab_size": 50,
        "d_model": 8,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    },
}
IN_A_LAYER = {
    "llama": [*SIX[:4], "W_gate", "W_up", "W_down"],
    "modernbert": ["Wqkv", "attn.Wo", "Wi", "mlp.Wo"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "bart": [
        *(
            f"{place}.{kind}"
            for place in ("encoder.self_attn", "decoder.self_attn", "decoder.encoder_attn")
            for kind in SIX[:4]
        ),
        *(f"{place}.{kind}" for place in ("encoder", "decoder") for kind in SIX[4:]),
    ],
}
OUTSIDE = {
    "deberta-v2": {"pooler.dense": "W_pool"},
    "bert": {"bert.pooler.dense": "W_pool"},
    "llama": {},
}


def linear_names(kind):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(kind, **BACKBONES[kind])
        )
    linear = (nn.Linear, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, linear)]


@pytest.mark.parametrize("kind", BACKBONES)
def test_each_matrix_of_a_layer_has_its_kind(kind):
    """Every kind once a layer: two matrices in one cell of the heatmap would hide each other."""
    names = linear_names(kind)
    kinds = dict(zip(names, kinds_of(names), strict=True))
    wanted = IN_A_LAYER.get(kind, SIX)
    inside = [name for name in names if layer_of(name) is not None]
    found = Counter((layer_of(name), kinds[name]) for name in inside)
    assert found == Counter((layer, k) for layer in (0, 1) for k in wanted)
    # in the order of the layer: query before key before value
    first = [kinds[name] for name in inside if layer_of(name) == 0]
    assert [k for k in first if k in SIX[:3]] == (SIX[:3] if "W_q" in wanted else []) or (
        kind == "mpnet"
    )
    # the head is trained in full: no matrix of it is ever in a report
    heads = ("classifier", "score", "classification_head")
    outside = {n: kinds[n] for n in names if layer_of(n) is None and not n.startswith(heads)}
    assert not set(outside.values()) & set(wanted)
    assert outside.items() >= OUTSIDE.get(kind, {}).items()


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        ("deberta.encoder.layer.11.attention.self.query_proj", "W_q", 11),
        ("deberta.encoder.layer.0.attention.self.key_proj", "W_k", 0),
        ("deberta.encoder.layer.7.attention.self.value_proj", "W_v", 7),
        ("deberta.encoder.layer.3.attention.output.dense", "W_o", 3),
        ("deberta.encoder.layer.3.intermediate.dense", "W_f1", 3),
        ("deberta.encoder.layer.3.output.dense", "W_f2", 3),
        ("pooler.dense", "W_pool", None),
        ("bert.encoder.layer.10.attention.self.query", "W_q", 10),
        ("roberta.encoder.layer.1.attention.self.key", "W_k", 1),
        ("electra.encoder.layer.1.attention.self.value", "W_v", 1),
        ("mpnet.encoder.layer.5.attention.attn.q", "W_q", 5),
        ("mpnet.encoder.layer.5.attention.attn.o", "W_o", 5),
        ("distilbert.transformer.layer.4.attention.q_lin", "W_q", 4),
        ("distilbert.transformer.layer.4.attention.out_lin", "W_o", 4),
        ("distilbert.transformer.layer.4.ffn.lin1", "W_f1", 4),
        ("distilbert.transformer.layer.4.ffn.lin2", "W_f2", 4),
        ("transformer.encoder.block.3.layer.0.SelfAttention.o", "W_o", 3),  # T5
        ("model.layers.31.self_attn.o_proj", "W_o", 31),
        ("model.layers.31.mlp.gate_proj", "W_gate", 31),
        ("model.layers.31.mlp.up_proj", "W_up", 31),
        ("model.layers.31.mlp.down_proj", "W_down", 31),
    ],
)
def test_names_by_hand(name, kind, layer):
    assert (kind_of(name), layer_of(name)) == (kind, layer)


def test_only_what_is_ambiguous_gets_a_longer_name():
    """And in every layer alike, be it there alone; the number of the layer has no part in it."""
    assert kinds_of(["l.0.mlp.Wo", "l.1.mlp.Wo"]) == ["Wo", "Wo"]
    assert kinds_of(["l.0.attn.Wo", "l.0.mlp.Wo", "l.0.mlp.Wi", "l.1.attn.Wo"]) == [
        "attn.Wo", "mlp.Wo", "Wi", "attn.Wo",
    ]  # fmt: skip
    experts = [f"l.{layer}.experts.{expert}.w1" for layer in (0, 1) for expert in (0, 1)]
    assert kinds_of(experts) == ["0.w1", "1.w1"] * 2
    assert kinds_of(["dense", "a.dense", "b.a.dense"]) == ["dense", "a.dense", "b.a.dense"]
    assert kinds_of([]) == []


@pytest.mark.parametrize(("kind", "parts"), [("gpt2", "mlp.c_proj"), ("llama", "W_down")])
def test_a_run_reports_them(kind, parts, backbone):
    """No cell of a run's heatmap is a sum of two matrices."""
    network, config = build(backbone(kind), target_modules=("all-linear",))
    report = rank_report(network, config, 0, network.bank.mask, None, network.bank.mean)
    assert parts in rank_grid(report).kinds
    assert {int(n) for n in rank_grid(report).numbers} == {config.init_rank}


PARTS = st.sampled_from(["a", "b", "0", "1", "q", "query_proj"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=5).map(".".join), unique=True, max_size=8))
def test_no_two_matrices_share_kind_and_layer(names):
    places = Counter(zip(map(layer_of, names), kinds_of(names), strict=True))
    assert max(places.values(), default=1) == 1


def test_longer_names_are_other_matrices():
    """DeBERTa-v2 without share_att_key, adapted by --target-modules all-linear."""
    prefix = "deberta.encoder.layer.0.attention.self"
    assert kind_of(f"{prefix}.pos_query_proj") != kind_of(f"{prefix}.query_proj")


def test_unknown_layers_keep_their_own_name():
    assert kind_of("classifier") == "classifier"
    assert kind_of("encoder.layer.0.mixer.in_proj") == "in_proj"
    assert layer_of("head.2") is None  # a number at the end is no layer
    assert layer_of("layers.0.experts.5.w1") == 0  # the outermost counts


def test_runs_without_quantizers_say_nothing_of_widths():
    """Their files are those of earlier versions, which are read as well."""
    assert "bits" not in written(REPORT)["matrices"][0]
    with_bits = replace(REPORT, matrices=(replace(MATRIX, bits={"A": 4, "x": 8}),))
    assert with_bits.matrices[0].mean_bits == 6
    assert RankReport.from_json(written(with_bits), "r") == with_bits


@pytest.mark.parametrize("bits", [{}, {"A": 0}, {"A": 33}, {"A": "4"}, {"A": 4.0}, [4], 4])
def test_widths_that_are_none(bits):
    found = written(REPORT)
    found["matrices"][0]["bits"] = bits
    with pytest.raises(RunDirError, match="corrupt"):
        RankReport.from_json(found, "ranks.json")
