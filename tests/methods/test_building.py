"""The network as it is built: gradients, heads, what a checkpoint lacks, PEFT's forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from bayeslora_cli.errors import ModelError
from bayeslora_cli.methods import building
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.models.backbones.targets import match_targets
from bayeslora_cli.models.encoders.relative_attention import RelativeAttention
from bayeslora_cli.models.kernels.low_rank import split_linear
from tests.conftest import KINDS, tiny_tokenizer
from tests.support.decoders import CAUSAL, save_decoder
from tests.support.networks import batch_of, build, logits, randomise


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_trained_tensor_gets_a_gradient(kind, backbone):
    network, _ = build(backbone(kind))
    randomise(network)
    bank = network.bank
    bank.zero_local()
    network.logits(batch_of()).square().sum().backward()
    bank.collect()
    for name, segment in bank.segments.items():
        assert bool((segment.view(bank.local) != 0).any()), name
    bank.check_views()
    trained = [p for p in network.module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == bank.trainable()


def test_a_forward_pass_equals_pefts(backbone):
    """AdaLoRA and LoRA layers, with weights copied over, forward and gradients."""
    for method, peft_config in (
        ("adalora", AdaLoraConfig(
            task_type=TaskType.SEQ_CLS, init_r=3, lora_alpha=32, total_step=9)),
        (
            "lora",
            LoraConfig(
                task_type=TaskType.SEQ_CLS, r=3, lora_alpha=32,
                target_modules=["query_proj", "key_proj", "value_proj", "dense"],
            ),
        ),
    ):  # fmt: skip
        criterion = "snr" if method == "adalora" else None
        network, _ = build(
            backbone("deberta-v2"), method=method, criterion=criterion, target_rank=3, init_rank=3
        )
        randomise(network)
        torch.manual_seed(2021)
        base = AutoModelForSequenceClassification.from_pretrained(
            backbone("deberta-v2"), num_labels=3
        )
        peft = get_peft_model(base, peft_config).eval()
        ours = network.module.state_dict()
        copied = 0
        with torch.no_grad():
            for name, parameter in peft.base_model.model.named_parameters():
                if not parameter.requires_grad:
                    continue
                plain = name.replace(".modules_to_save.default", "").replace(".default", "")
                plain = plain.replace("_A.weight", "_A").replace("_B.weight", "_B")
                parameter.copy_(ours[plain])
                copied += 1
        assert copied == len(network.bank.segments)
        network.module.eval()
        network.bank.zero_local()
        mine, theirs = network.logits(batch_of()), peft(**batch_of()).logits
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        mine.square().sum().backward()
        network.bank.collect()
        # against PEFT in float64, from which PEFT's own fp32 gradients are as far as ours: up to
        # 7e-6 on one processor, 1.2e-5 on another, whose products sum in another order
        theirs.square().sum().backward()
        trained = {n: p for n, p in peft.named_parameters() if p.requires_grad and "lora_A" in n}
        in_fp32 = {name: parameter.grad.double() for name, parameter in trained.items()}
        peft.zero_grad()
        peft.double()(**batch_of()).logits.square().sum().backward()
        off, off_theirs = {}, {}
        for name, parameter in trained.items():
            plain = name.removeprefix("base_model.model.").replace(".default", "")
            segment = network.bank.segments[plain.replace(".weight", "")]
            norm = parameter.grad.norm()
            off[name] = (segment.view(network.bank.local) - parameter.grad).norm() / norm
            off_theirs[name] = (in_fp32[name] - parameter.grad).norm() / norm
        assert max(off.values()) < max(1e-5, 1.5 * max(off_theirs.values())), off


def test_what_the_checkpoint_lacks_is_kept(backbone, tmp_path):
    network, _ = build(backbone("deberta-v2"))
    assert set(network.drawn) == {"pooler.dense.weight", "pooler.dense.bias"}
    again, _ = build(backbone("deberta-v2"))
    other, _ = build(backbone("deberta-v2"), seed=1)
    assert torch.equal(network.drawn["pooler.dense.weight"], again.drawn["pooler.dense.weight"])
    assert not torch.equal(network.drawn["pooler.dense.weight"], other.drawn["pooler.dense.weight"])
    other.set_drawn("pooler.dense.weight", network.drawn["pooler.dense.weight"])
    weight = other.module.pooler.dense.base_layer.weight
    assert torch.equal(weight, network.drawn["pooler.dense.weight"])


def test_a_fine_tuned_checkpoint_with_another_head_gets_a_new_one(backbone, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(backbone("bert"), num_labels=5)
    model.save_pretrained(tmp_path)
    load_tokenizer(backbone("bert")).save_pretrained(tmp_path)
    network, _ = build(str(tmp_path))
    assert network.module.classifier.weight.shape == (3, 32)


def test_a_checkpoint_of_another_backbone_is_refused(backbone, tmp_path):
    """transformers would draw the whole encoder at random and go on."""
    AutoModel.from_config(
        AutoConfig.for_model("distilbert", **KINDS["distilbert"])
    ).save_pretrained(tmp_path)
    load_tokenizer(backbone("bert")).save_pretrained(tmp_path)
    config = AutoConfig.for_model("bert", **KINDS["bert"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ModelError, match="no checkpoint of this backbone"):
        build(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such-model", "."])
def test_a_model_that_is_not_there(name):
    with pytest.raises(ModelError, match=r"--model .*cannot load the tokenizer: .*\w\.? \(give"):
        load_tokenizer(name)


def test_full_trains_everything_once(backbone):
    network, _ = build(backbone("bert"), method="full", criterion=None, optimizer="adamw")
    assert network.bank.trainable() == sum(p.numel() for p in network.module.parameters())
    assert {s.role for s in network.bank.segments.values()} == {"full", "head"}


METHODS_JOINED = {"adalora": {}, "lora": {"method": "lora", "criterion": None, "init_rank": 2}}


@pytest.mark.parametrize("method", METHODS_JOINED)
@pytest.mark.parametrize("shared", [True, False])
def test_joined_projections(method, shared, backbone, tmp_path, monkeypatch):
    """DeBERTa's q, k and v in one product: the same logits and gradients, the weights kept once."""
    config = AutoConfig.from_pretrained(backbone("deberta-v2"), share_att_key=shared)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = []
    for joints in (building._joints, lambda *_, decoder: []):
        monkeypatch.setattr(building, "_joints", joints)
        network, _ = build(str(tmp_path), **METHODS_JOINED[method])
        joined = [m.joint for m in network.module.modules() if isinstance(m, RelativeAttention)]
        assert all((joint is None) == bool(found) for joint in joined), "the control is not joined"
        for joint in (joint for joint in joined if joint is not None):
            for layer, view in zip(joint.layers, joint.base_layer.weight.chunk(3), strict=True):
                assert layer.base_layer.weight.data_ptr() == view.data_ptr()
        randomise(network)
        network.bank.zero_local()
        outputs = logits(network, batch_of())
        network.logits(batch_of()).square().sum().backward()
        network.bank.collect()
        found.append((outputs, network.bank.local.clone(), network.module.state_dict()))
    torch.testing.assert_close(*(logits for logits, *_ in found), rtol=1e-4, atol=1e-5)
    one, other = (gradient for _, gradient, _ in found)
    assert (one - other).norm() <= 1e-5 * other.norm() > 0
    torch.testing.assert_close(*(state for *_, state in found), rtol=0, atol=0)


def test_bf16_keeps_the_head_in_fp32(backbone):
    network, _ = build(backbone("deberta-v2"), precision="bf16")
    assert network.module.deberta.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert network.module.classifier.weight.dtype == torch.float32
    exact, _ = build(backbone("deberta-v2"))
    for n in (network, exact):
        randomise(n)
    torch.testing.assert_close(
        logits(network, batch_of()), logits(exact, batch_of()), rtol=0.1, atol=0.1
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradient(dropout, backbone):
    gradients = []
    for what in ("off", "blocks", "selective"):
        network, _ = build(backbone("bert", dropout), gradient_checkpointing=what)
        randomise(network)
        network.module.train()
        network.bank.zero_local()
        torch.manual_seed(0)
        network.logits(batch_of()).square().sum().backward()
        network.bank.collect()
        gradients.append(network.bank.local.clone())
    for recomputed in gradients[1:]:
        assert torch.equal(recomputed, gradients[0])


def test_a_layer_with_a_forward_pass_of_its_own_is_not_adapted(backbone):
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    module = AutoModelForSequenceClassification.from_pretrained(backbone("bert"))
    module.bert.encoder.layer[1].attention.self.query.__class__ = Doubled
    with pytest.raises(ModelError, match="is not a linear layer with torch's own forward pass"):
        match_targets(module, ("classifier",), ("query",))


# ---- causal language models


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_read_in_the_runs_precision(tied, tmp_path):
    """In bf16 what fp32 rounds to, under one checksum; what is trained stays fp32."""
    model = save_decoder(tmp_path / "model", "qwen2", tie_word_embeddings=tied)
    exact, _ = build(model, CAUSAL)
    rounded, _ = build(model, CAUSAL, precision="bf16")
    assert exact.backbone_sha256 == rounded.backbone_sha256
    for name, value in exact.module.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(rounded.module.state_dict()[name], value.bfloat16()), name
    assert rounded.bank.theta.dtype == torch.float32
    assert torch.equal(rounded.bank.mean, exact.bank.mean)


@pytest.mark.parametrize("tied", [True, False])
def test_full_fine_tuning_keeps_fp32_weights_of_a_language_model(tied, tmp_path):
    model = save_decoder(tmp_path / "model", "llama", tie_word_embeddings=tied)
    options = {"method": "full", "optimizer": "adamw", "criterion": None, "precision": "bf16"}
    network, _ = build(model, CAUSAL, **options)
    read = AutoModelForCausalLM.from_pretrained(model)
    theta = network.bank.theta
    own = {name: segment.view(theta) for name, segment in network.bank.segments.items()}
    assert ("lm_head.weight" in own) is not tied
    for name, value in own.items():
        assert torch.equal(value, read.state_dict()[name]), name
    if tied:
        assert network.module.lm_head.weight is network.module.model.embed_tokens.weight


def test_which_layers_keep_halves(backbone, tmp_path, monkeypatch):
    """All that compute a product by themselves, joints as one; the MLPs of decoders do not."""
    monkeypatch.setattr(split_linear, "is_able", lambda *_: True)
    encoder, _ = build(backbone("deberta-v2"))
    decoder, _ = build(save_decoder(tmp_path), CAUSAL)
    for network, count in ((encoder, 2 * 4 + 1), (decoder, 2 * 2)):
        found = building._keep_halves(network.module, network.adapters.values(), network.joints)
        assert found == count
        kept = [x for x in network.module.modules() if getattr(x, "halves", None) is not None]
        joined = sum(joint.base_layer.halves is not None for joint in network.joints)
        assert len(kept) == count - joined
