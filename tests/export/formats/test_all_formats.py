"""Every format on every backbone: written, reopened without bayeslora, the same logits."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from bayeslora_cli.errors import BayesloraError, ModelError, NonFiniteError
from bayeslora_cli.export.formats.lora_files import save_patterned_adapter
from bayeslora_cli.export.formats.onnx_model import write_onnx
from bayeslora_cli.export.independent_reader import load_merged
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.export.verification import batches_of, compare, random_rows, run_logits
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.sources.demo import DEMO
from tests.support import written_exports
from tests.support.networks import build

KINDS = ["bert", "deberta-v2", "roberta", "distilbert", "gpt2", "llama"]
FORMS = {
    "adalora": ExportOptions(format="adalora"),
    "lora": ExportOptions(format="lora"),
    "lora-patterns": ExportOptions(format="lora", patterns=True),
    "merged": ExportOptions(format="merged"),
    "onnx": ExportOptions(format="onnx"),
}
# no triplet kept, all kept, or drawn
PATTERNS = st.one_of(st.sampled_from(["none", "all"]), st.integers(0, 2**32 - 1))


def make(model, pattern, **changes):
    """A network whose every element is far from its start, with a pattern of ranks."""
    network, config = build(model, **changes)
    bank = network.bank
    generator = torch.Generator().manual_seed(3)
    bank.mean.add_(torch.empty(bank.size).normal_(std=0.1, generator=generator))
    if pattern in ("none", "all"):
        bank.mask.fill_(pattern == "all")
    else:
        generator.manual_seed(pattern)
        ranks = torch.randint(0, bank.rank + 1, (len(bank.mask),), generator=generator)
        scores = torch.rand(bank.mask.shape, generator=generator).argsort(1)
        bank.mask.copy_(scores < ranks[:, None])
    return network, config


export = partial(written_exports.export, task=DEMO, rows=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [f for f in FORMS if f != "onnx"])
@settings(max_examples=3, deadline=None)
@given(pattern=PATTERNS)
@example(pattern="none")
@example(pattern="all")
@example(pattern=1)
def test_any_rank_pattern_survives(kind, name, pattern, backbone):
    network, config = make(backbone(kind), pattern, target_modules=("all-linear",))
    with tempfile.TemporaryDirectory() as directory:
        check = export(network, config, FORMS[name], Path(directory) / "export")
    assert check.rows == 9
    assert check.largest_logit > 0.05, "logits near zero would prove nothing"


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_onnx_at_other_shapes_than_traced(kind, backbone, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, config = make(backbone(kind), 5, target_modules=("all-linear",))
    export(network, config, FORMS["onnx"], tmp_path / "export")
    assert {p.name for p in (tmp_path / "export").iterdir()} == {
        "model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_backbone_that_cannot_be_traced_is_one_error(backbone, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from transformers import BertForSequenceClassification

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        if input_ids.sum() > int(input_ids[0, 0]):  # depends on the data
            raise AssertionError
        return

    model = load_merged(backbone("bert"), "AutoModelForSequenceClassification")
    example = batches_of(random_rows(load_tokenizer(backbone("bert")), 6, 12))[0]
    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    expected = "--format onnx: torch cannot export BertForSequenceClassification"
    with pytest.raises(ModelError, match=expected) as raised:
        write_onnx(model, example, tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lora", "lora-patterns", "merged"])
def test_plain_lora_runs(name, backbone, tmp_path):
    network, config = make(
        backbone("bert"), "all", method="lora", criterion=None, init_rank=2, target_rank=2
    )
    export(network, config, FORMS[name], tmp_path / "export")
    if name != "merged":
        written = json.loads((tmp_path / "export" / "adapter_config.json").read_text())
        expected = (8, 8) if name == "lora" else (2, 32)
        assert (written["r"], written["lora_alpha"]) == expected
        assert written["rank_pattern"] == written["alpha_pattern"] == {}


def test_patterns_say_what_the_tensors_hold(backbone, tmp_path):
    """A rank and an alpha a matrix, alpha / r the run's scale, nothing for rank 0."""
    network, config = make(backbone("bert"), 2, target_modules=("query", "value", "dense"))
    ranks = dict(zip(network.adapters, network.bank.mask.sum(1).int().tolist(), strict=True))
    assert {0, 1, 3} <= set(ranks.values())
    export(network, config, FORMS["lora-patterns"], tmp_path / "export")
    written = json.loads((tmp_path / "export" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "export" / "adapter_model.safetensors")
    assert set(written["target_modules"]) == {n for n, r in ranks.items() if r}
    for name, rank in ranks.items():
        key = f"base_model.model.{name}.lora_A.weight"
        if rank == 0:
            assert key not in tensors
            continue
        assert tensors[key].shape[0] == rank == written["rank_pattern"].get(name, written["r"])
        alpha = written["alpha_pattern"].get(name, written["lora_alpha"])
        assert alpha / rank == pytest.approx(32 / (3 + 1e-5), rel=1e-14)


@pytest.mark.parametrize("targets", [("query", "value", "dense"), ("query", "output.dense")])
def test_uniform_ranks_need_no_patterns(targets, backbone, tmp_path):
    network, config = make(backbone("bert"), 2, target_modules=targets)
    export(network, config, FORMS["lora"], tmp_path / "export")
    written = json.loads((tmp_path / "export" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "export" / "adapter_model.safetensors")
    assert written["rank_pattern"] == written["alpha_pattern"] == {}
    assert (written["r"], written["lora_alpha"]) == (8, 8)
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {8}
    # "dense" names all such layers, adapted or not; kinds without any rank are left out
    there = {n[len("base_model.model.") :].split(".lora_")[0] for n in tensors if ".lora_" in n}
    named = set(targets) if "dense" in targets else there
    assert set(written["target_modules"]) == named
    assert there <= network.adapters.keys()


def test_a_matrix_that_the_checkpoint_lacks_cannot_be_low_rank(backbone, tmp_path):
    network, config = make(backbone("deberta-v2"), "all", target_modules=("pooler.dense",))
    with pytest.raises(ModelError, match="no low-rank adapter is left; use --format merged"):
        save_patterned_adapter(
            network, config, network.bank.mean, network.bank.mask, tmp_path / "x"
        )
    with pytest.raises(ModelError, match="no low-rank adapter is left; use --format merged"):
        export(network, config, FORMS["lora"], tmp_path / "lora")
    export(network, config, FORMS["merged"], tmp_path / "merged")


@pytest.mark.parametrize("name", ["adalora", "lora", "merged"])
def test_checkpoints_in_half_precision_and_with_another_head(name, backbone, tmp_path):
    """transformers would load bf16 as it is, and refuse a head of five classes."""
    whole = AutoModelForSequenceClassification.from_pretrained(backbone("bert"), num_labels=5)
    whole.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    load_tokenizer(backbone("bert")).save_pretrained(tmp_path / "base")
    network, config = make(str(tmp_path / "base"), 4)
    export(network, config, FORMS[name], tmp_path / "export")


def test_merged_opens_with_auto_model_alone(backbone, tmp_path):
    network, config = make(backbone("deberta-v2"), 4)
    export(network, config, FORMS["merged"], tmp_path / "export")
    model, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    AutoModel.from_pretrained(tmp_path / "export")


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_check_fails(wrong, backbone):
    network, config = make(backbone("bert"), 4)
    batches = batches_of(random_rows(load_tokenizer(config.model), 7, 12))
    expected = run_logits(network, batches)
    answers = iter(expected)

    def reopened(batch):
        logits = next(answers).clone()
        if batch is batches[1]:
            logits[0, 1] += wrong
        return logits

    with pytest.raises(BayesloraError, match="the export is wrong, nothing is written") as raised:
        compare(expected, reopened, batches, bound=1e-5, inputs="random")
    assert raised.value.exit_code == 1


def test_the_bound_is_relative_to_large_logits():
    logits = [torch.tensor([[1000.0, -3.0]])]
    check = compare(logits, lambda _: logits[0] + 5e-3, [{}], bound=1e-5, inputs="x")
    assert check.allowed == pytest.approx(1e-2)
    assert str(check) == (
        "logits on 1 rows of x: largest difference from the run 5.0e-03, allowed 1.0e-02"
    )


def test_a_run_that_is_not_finite_is_not_exported(backbone):
    network, config = make(backbone("bert"), 4)
    network.bank.mean.fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        run_logits(network, batches_of(random_rows(load_tokenizer(config.model), 4, 12)))


@given(st.integers(1, 40), st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_random_rows(backbone, rows, longest):
    tokenizer = load_tokenizer(backbone("bert"))
    split = random_rows(tokenizer, rows, longest)
    assert len(split) == rows
    assert 1 <= int(split.lengths.min()) <= int(split.lengths.max()) <= longest
    around = {2, 3} if longest > 2 else set()  # [CLS] and [SEP], where words have room beside them
    assert set(split.tokens.tolist()) & set(tokenizer.all_special_ids) == around
    if around:
        assert set(split.tokens[split.offsets[:-1]].tolist()) == {2}
        assert set(split.tokens[split.offsets[1:] - 1].tolist()) == {3}
    assert sum(len(batch["input_ids"]) for batch in batches_of(split)) == rows
