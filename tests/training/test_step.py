"""The optimisation step: against a whole training in PEFT, and against itself split up."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution.cuda_graphs import run_eagerly
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.blora.method import BLORA
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.schedules import LearningRate, RankBudget
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.classification import Classification
from bayeslora_cli.training.step import TrainStep
from tests.support.objectives import SCORE, TWO_CLASSES

TOTAL, T_INIT, T_FINAL, DELTA_T = 60, 10, 20, 3
PHASES = {"t_init": T_INIT, "t_final": T_FINAL, "schedule_steps": TOTAL}
GATES = {"gate_lr": 0.3, "lambda_quant": 1e-3, "lambda_rank": 1e-3}  # gates close in 30 steps


METHODS = [
    ("adalora", "ivon", "sensitivity"),
    ("adalora", "ivon", "snr"),
    ("adalora", "ivon", "snr-abs"),
    ("adalora", "ivon", "magnitude"),
    ("adalora", "ivon", "precision"),
    ("adalora", "adamw", "sensitivity"),
    ("adalora", "adamw", "magnitude"),
    ("lora", "adamw", None),
    ("lora", "ivon", None),
    ("full", "adamw", None),
    ("full", "ivon", None),
    ("blora", "adamw", None),
    ("blora", "ivon", None),
]


def make_step(
    model,
    optimizer,
    criterion,
    *,
    samples=1,
    method="adalora",
    labels=None,
    seed=2021,
    device="cpu",
    precision="fp32",
    runner=lambda noise: run_eagerly,
    **changes,
):
    config = RunConfig(
        task="rte", model=model, method=method, optimizer=optimizer, criterion=criterion,
        seed=seed, train_samples=samples, precision=precision,
        weight_decay=1e-8 if optimizer == "ivon" else 0.0,
        **{"init_rank": 3 if method == "adalora" else 2}
        | PHASES | (GATES if method == "blora" else {}) | changes,
    )  # fmt: skip
    maker = OPTIMIZERS[optimizer]
    network = build_network(
        config, labels or TWO_CLASSES, load_tokenizer(model),
        posterior=maker.posterior, device=torch.device(device),
    )  # fmt: skip
    noise = torch.Generator(device).manual_seed(seed)
    built = build_optimizer(config, network.bank, 2000, noise)
    allocator = BLORA.allocator(config, network, noise) if network.operands else None
    if criterion:
        n = len(network.bank.matrices)
        budget = RankBudget(
            initial=3 * n,
            target=2 * n,
            t_init=T_INIT,
            t_final=T_FINAL,
            delta_t=DELTA_T,
            total=TOTAL,
        )
        allocator = RankAllocator(network.bank, load_criterion(criterion), budget)
    rate = LearningRate(peak=0.3 if optimizer == "ivon" else 3e-3, total=TOTAL, warmup=5)
    network.module.train()
    return TrainStep(
        network, built, allocator, learning_rate=rate,
        orth_reg=0.1 if method == "adalora" else 0.0, samples=samples, runner=runner(noise),
    )  # fmt: skip


def batches(rows=8, length=10, seed=5):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(TOTAL):
        ids = torch.randint(4, 64, (rows, length), generator=generator)
        found.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": (ids[:, 1] > 33).long(),
            }
        )
    return found


def test_a_whole_training_follows_pefts_loss_for_loss(backbone):
    """AdaLoRA with AdamW, sensitivity, dropout off, fp32: penalty, masks, final phase included."""
    step = make_step(backbone("deberta-v2"), "adamw", "sensitivity")
    bank, allocator = step.network.bank, step.allocator

    torch.manual_seed(2021)
    base = AutoModelForSequenceClassification.from_pretrained(backbone("deberta-v2"), num_labels=2)
    peft = get_peft_model(
        base,
        AdaLoraConfig(
            task_type=TaskType.SEQ_CLS, init_r=3, target_r=2, lora_alpha=32, tinit=T_INIT,
            tfinal=T_FINAL, deltaT=DELTA_T, total_step=TOTAL, orth_reg_weight=0.1,
        ),
    )  # fmt: skip
    state = step.network.module.state_dict()
    with torch.no_grad():
        for name, parameter in peft.base_model.model.named_parameters():
            plain = name.replace(".modules_to_save.default", "").replace(".default", "")
            if parameter.requires_grad:
                parameter.copy_(state[plain])
    trained = [p for p in peft.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    peft.train()

    for t, batch in enumerate(batches()):
        adamw.param_groups[0]["lr"] = step.learning_rate(t)
        loss = peft(**batch).loss
        loss.backward()
        adamw.step()
        peft.base_model.update_and_allocate(t)
        adamw.zero_grad()

        step(t, [batch])
        progress = step.means()
        assert progress.loss + progress.penalty == pytest.approx(loss.item(), rel=2e-5), t

    assert bank.mask.sum() == allocator.budget.target
    pattern = peft.peft_config["default"].rank_pattern
    for index, matrix in enumerate(bank.matrices):
        kept = pattern[f"{matrix.name}.lora_E.default"]
        assert bank.mask[index].bool().tolist() == kept
    for name, parameter in peft.base_model.model.named_parameters():
        if parameter.requires_grad and "original_module" not in name:
            plain = name.replace(".modules_to_save.default", "").replace(".default", "")
            got = bank.segments[plain].view(bank.mean)
            torch.testing.assert_close(got, parameter.data, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_average_to_the_batch(optimizer, parts, backbone):
    """The gradient does not depend on the split; IVON's noise is drawn afresh for each part."""
    gradients = []
    for split in (1, parts):
        step = make_step(backbone("bert"), optimizer, "magnitude")
        if optimizer == "ivon":  # noise too small to matter leaves the average alone to compare
            step.optimizer.param_groups[0]["ess"] = 1e12
        batch = batches()[0]
        step(0, [{k: v[i::split] for k, v in batch.items()} for i in range(split)])
        gradients.append(step.network.bank.grad[0].clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=2e-6)


def test_the_penalty_comes_once_however_many_micro_batches_there_are(backbone):
    """peft adds it to every forward pass, so that four micro-batches have it four times."""
    found = []
    for parts in (1, 4):
        step = make_step(backbone("bert"), "adamw", "magnitude")
        free = make_step(backbone("bert"), "adamw", "magnitude")
        free.orth_reg = 0.0
        batch = batches()[0]
        for one in (step, free):
            one(0, [{k: v[i::parts] for k, v in batch.items()} for i in range(parts)])
        found.append(step.network.bank.grad - free.network.bank.grad)
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-6)


def test_uneven_micro_batches_are_weighed_by_their_rows(backbone):
    step = make_step(backbone("bert"), "adamw", "magnitude")
    other = make_step(backbone("bert"), "adamw", "magnitude")
    batch = batches()[0]
    step(0, [batch])
    other(0, [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}])
    torch.testing.assert_close(
        step.network.bank.grad, other.network.bank.grad, rtol=1e-4, atol=1e-6
    )
    assert step.means().loss == pytest.approx(other.means().loss, rel=1e-6)


class Weighted(Classification):
    """Rows of class 1 count three times, as rows of more tokens would."""

    def counts(self, labels, lengths):
        return 1 + 2 * labels

    def loss(self, logits, batch):
        weights = self.counts(batch["labels"], None)
        each = F.cross_entropy(logits, batch["labels"], reduction="none")
        return (each * weights).sum() / weights.sum()


@pytest.mark.parametrize("parts", [(8,), (3, 5), (1, 1, 6)])
def test_micro_batches_are_weighed_by_what_their_rows_count(parts, backbone):
    """The step's gradient is that of one loss: the sum over all rows by the sum of the counts."""
    objective = Weighted(name="classification", classes=("a", "b"))
    step = make_step(backbone("bert"), "adamw", "magnitude", labels=objective)
    batch = batches()[0]
    split = [
        dict(zip(batch, found, strict=True))
        for found in zip(*(value.split(parts) for value in batch.values()), strict=True)
    ]
    for part in split:
        part["count"] = objective.counts(part["labels"], None).sum()
    step(0, split)
    twin = make_step(backbone("bert"), "adamw", "magnitude", labels=objective)
    twin._collect(twin._backward(batch), 1.0, True)
    torch.testing.assert_close(step.network.bank.grad, twin.network.bank.grad, rtol=1e-4, atol=1e-6)
    assert step.means().loss == pytest.approx(float(twin._loss[0]), rel=1e-6)


def test_samples_average_over_fresh_noise(backbone):
    """Three samples: the mean of three passes at the noise that the generator draws."""
    step = make_step(backbone("bert"), "ivon", "snr", samples=3)
    twin = make_step(backbone("bert"), "ivon", "snr")
    batch = batches()[0]
    start = twin.network.bank.mean.clone()
    expected = torch.zeros_like(step.network.bank.grad)
    for _ in range(3):
        twin.optimizer.sample(masked=False)
        twin._collect(twin._backward(batch), 1.0, True)
        g, noise = twin.network.bank.local, twin.network.bank.noise
        expected += torch.stack((g, noise * g)) / 3
    assert torch.equal(twin.network.bank.mean, start)
    step(0, [batch])
    torch.testing.assert_close(step.network.bank.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_bad_step_freezes_the_state_and_is_named(optimizer, backbone):
    step = make_step(backbone("bert"), optimizer, "magnitude")
    data = batches()
    for t in range(4):
        step(t, [data[t]])
    bank = step.network.bank
    parts = (bank, step.optimizer, step.allocator)
    before = {n: v.clone() for part in parts for n, v in part.tensors().items()}
    embedding = step.network.module.bert.embeddings.word_embeddings.weight
    clean = embedding.clone()
    embedding.data[data[4]["input_ids"][0, 1]] = float("nan")
    step(4, [data[4]])
    embedding.data.copy_(clean)
    for t in range(5, 15):  # finite again, but the run is over: an allocation step is among these
        step(t, [data[t]])
    for part in parts:
        for name, value in part.tensors().items():
            assert torch.equal(value, before[name]), name
    assert step.bad_step() == 4


@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_no_value_is_read_in_the_step(method, optimizer, criterion, backbone, monkeypatch):
    """`item`, `tolist`, `nonzero` and truth tests would each stop a GPU and a graph's capture."""
    step = make_step(backbone("bert"), optimizer, criterion, method=method)
    data = batches()

    def forbidden(*_, **__):
        raise AssertionError("the step read a value back")

    step(0, [data[0]])
    # the backbone's own attention mask handling is not ours to forbid: patch around the model
    original = step.network.logits

    def logits(batch):
        with monkeypatch.context() as inside:
            for name, method_of in saved.items():
                inside.setattr(torch.Tensor, name, method_of)
            return original(batch)

    names = ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy")
    saved = {name: getattr(torch.Tensor, name) for name in names}
    monkeypatch.setattr(type(step.network), "logits", lambda self, batch: logits(batch))
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, forbidden)
        for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):  # allocation, last allocation, held
            step(t, [data[t]])
    assert step.bad_step() is None


def test_pruned_triplets_stay_dead_in_the_final_phase(backbone):
    """Neither the update nor IVON's noise touches them."""
    step = make_step(backbone("bert"), "ivon", "snr")
    bank = step.network.bank
    data = batches()
    for t in range(TOTAL - T_FINAL + 1):
        step(t, [data[t]])
    pruned = bank.mask == 0
    assert bool(pruned.any())
    for t in range(TOTAL - T_FINAL + 1, TOTAL):
        step(t, [data[t]])
        assert bool((bank.singular_values(bank.theta)[pruned] == 0).all()), t
        assert bool((bank.singular_values(bank.mean)[pruned] == 0).all()), t


def test_regression_minimises_the_squared_error(backbone):
    step = make_step(backbone("bert"), "adamw", "magnitude", labels=SCORE)
    batch = batches()[0]
    batch["labels"] = batch["input_ids"][:, 1].float() / 20
    with torch.no_grad():
        errors = step.network.logits(batch).squeeze(-1) - batch["labels"]
    losses = []
    for t in range(TOTAL):
        step(t, [batch])
        losses.append(step.means().loss)
    assert losses[0] == pytest.approx(errors.double().square().mean().item(), rel=1e-6)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")
@pytest.mark.parametrize(
    ("method", "optimizer", "criterion"),
    [("adalora", "ivon", "snr"), ("adalora", "adamw", "sensitivity"), ("blora", "adamw", None)],
)
def test_a_compiled_step_is_the_eager_one(method, optimizer, criterion, backbone):
    """As far as rounding goes: sums that the compiler fuses."""
    found = []
    for compiled in (False, True):
        step = make_step(backbone("bert"), optimizer, criterion, method=method)
        if compiled:
            step.compile()
        with torch._dynamo.config.patch(recompile_limit=64):
            for t, batch in enumerate(batches()):
                step(t, [batch])
        bank = step.network.bank
        found.append((bank.mean, bank.mask, step.means().loss))
    (mean, mask, loss), (other_mean, other_mask, other_loss) = found
    torch.testing.assert_close(other_mean, mean, rtol=1e-5 if method == "blora" else 0, atol=1e-6)
    assert torch.equal(other_mask, mask)
    assert other_loss == pytest.approx(loss, rel=1e-5)
