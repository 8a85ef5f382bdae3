"""Backbones: targets, heads, what a checkpoint lacks; and the adapter in plain PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.export.formats.merged_model import merge
from bayeslora_cli.export.formats.peft_adapter import save_peft_adapter
from bayeslora_cli.methods import building
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.backbones.deberta_attention import RelativeAttention
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.models.backbones.targets import match_targets
from bayeslora_cli.tasks.objectives.objective import build_objective
from tests.conftest import KINDS, tiny_tokenizer

CPU = torch.device("cpu")
LABELS = build_objective("classification", ("no", "yes", "perhaps"))
DEFAULTS = {  # by PEFT's AdaLoRA mapping; all linear layers outside the head where it has none
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "dense"],
    "bert": ["query", "value"],
    "roberta": ["query", "key", "value", "dense"],
    "mpnet": ["q", "k", "v", "o", "dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "pre_classifier"],
    "electra": ["query", "key", "value", "dense", "embeddings_project"],
}


def config_for(model, **changes):
    options = {"task": "mnli", "model": model, "criterion": "snr", "schedule_steps": 10} | changes
    return RunConfig(**options)


def build(model, labels=LABELS, **changes):
    config = config_for(model, **changes)
    tokenizer = load_tokenizer(model)
    network = build_network(config, labels, tokenizer, posterior=False, device=CPU)
    return network, config


def batch_of(seed=0, rows=5, length=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def randomise(network, seed=3):
    """Some trained state: every element moved, ranks from 0 to full."""
    generator = torch.Generator().manual_seed(seed)
    bank = network.bank
    bank.mean.add_(torch.empty(bank.size).normal_(std=0.2, generator=generator))
    bank.mask.copy_(torch.randint(0, 2, bank.mask.shape, generator=generator))
    bank.mask[0], bank.mask[1] = 0, 1
    bank.publish()


def logits(network, batch):
    network.module.eval()
    with torch.no_grad(), network.bank.at_mean():
        return network.logits(batch)


@pytest.mark.parametrize("kind", list(KINDS))
def test_default_targets(kind, backbone):
    network, _ = build(backbone(kind))
    endings = {name.rpartition(".")[2] for name in network.adapters}
    assert endings == set(DEFAULTS[kind])
    assert not any(name.startswith("classifier") for name in network.adapters)


def test_deberta_has_the_papers_matrices(backbone):
    """6 a layer and the pooler: 73 at 12 layers."""
    network, _ = build(backbone("deberta-v2"))
    assert len(network.adapters) == 2 * 6 + 1
    assert "pooler.dense" in network.adapters


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "roberta"])
def test_targets_are_pefts(kind, backbone):
    """The same layers as PEFT's AdaLoRA adapts, without its match inside RoBERTa's head."""
    network, _ = build(backbone(kind))
    module = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    peft = get_peft_model(module, AdaLoraConfig(task_type=TaskType.SEQ_CLS, total_step=10))
    theirs = [n for n in peft.base_model.targeted_module_names if not n.startswith("classifier")]
    assert list(network.adapters) == theirs


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("nonsense",), "no layer of bert matches; it has dense, key, query, value"),
        (("LayerNorm",), "is no linear layer"),
        (("classifier",), "no layer of bert matches"),
    ],
)
def test_targets_that_cannot_be(wanted, message, backbone):
    with pytest.raises(ModelError, match=message):
        build(backbone("bert"), target_modules=wanted)


def test_all_linear(backbone):
    network, _ = build(backbone("bert"), target_modules=("all-linear",))
    assert len(network.adapters) == 2 * 6 + 1


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


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("method", ["adalora", "lora"])
def test_the_adapter_opens_in_plain_peft_with_the_same_logits(kind, method, backbone, tmp_path):
    """Whatever the checkpoint lacked: the base is drawn again under another seed."""
    criterion = "snr" if method == "adalora" else None
    network, config = build(
        backbone(kind), method=method, criterion=criterion, init_rank=2 if criterion is None else 3
    )
    randomise(network)
    if method == "lora":
        network.bank.mask.fill_(1)
    expected = logits(network, batch_of())
    save_peft_adapter(network, config, network.bank.mean, network.bank.mask, tmp_path / "adapter")

    torch.manual_seed(99)
    base = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = model(**batch_of()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1, "logits near zero would prove nothing"


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
def test_adapter_files_have_pefts_own_keys(kind, backbone, tmp_path):
    """What PEFT itself saves for the same model has the same tensor names and shapes."""
    from safetensors import safe_open

    # a whole checkpoint, so that nothing but the head is saved whole
    whole = AutoModelForSequenceClassification.from_pretrained(backbone(kind), num_labels=3)
    whole.save_pretrained(tmp_path / "whole")
    load_tokenizer(backbone(kind)).save_pretrained(tmp_path / "whole")
    network, config = build(str(tmp_path / "whole"))
    save_peft_adapter(network, config, network.bank.mean, network.bank.mask, tmp_path / "ours")
    peft = get_peft_model(whole, AdaLoraConfig(task_type=TaskType.SEQ_CLS, init_r=3, total_step=10))
    peft.save_pretrained(tmp_path / "theirs")

    def shapes(directory):
        with safe_open(directory / "adapter_model.safetensors", "pt") as file:
            return {k: tuple(file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118

    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")


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
    with pytest.raises(ModelError, match=r"--model .*cannot load the tokenizer"):
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
    for joints in (building._joints, lambda module: []):
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
    for on in (False, True):
        network, _ = build(backbone("bert", dropout), gradient_checkpointing=on)
        randomise(network)
        network.module.train()
        network.bank.zero_local()
        torch.manual_seed(0)
        network.logits(batch_of()).square().sum().backward()
        network.bank.collect()
        gradients.append(network.bank.local.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_a_merged_module_computes_what_the_network_did(kind, backbone):
    network, _ = build(backbone(kind))
    randomise(network)
    batch = batch_of()
    expected = logits(network, batch)
    module = merge(network, network.bank.mean, network.bank.mask)
    found = module.eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_with_a_forward_pass_of_its_own_is_not_adapted(backbone):
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    module = AutoModelForSequenceClassification.from_pretrained(backbone("bert"))
    module.bert.encoder.layer[1].attention.self.query.__class__ = Doubled
    with pytest.raises(ModelError, match="is no linear layer with torch's own forward pass"):
        match_targets(module, ("classifier",), ("query",))


def test_match_targets_names_what_there_is(backbone):
    module = AutoModel.from_pretrained(backbone("bert"))
    with pytest.raises(ModelError, match="dense, key, query, value"):
        match_targets(module, (), ["q_proj"])
