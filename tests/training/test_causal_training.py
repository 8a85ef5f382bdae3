"""Causal language models through the one step and the one loop: against PEFT, and split up."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.batching import Feed, TrainOrder
from bayeslora_cli.training.assembly import Workspace
from bayeslora_cli.training.loop import train
from tests.support.decoders import CAUSAL, save_decoder, token_rows, write_prompts
from tests.support.faults import contents, differences
from tests.training.test_step import DELTA_T, T_FINAL, T_INIT, TOTAL, make_step

CPU = torch.device("cpu")
LENGTHS = tuple(3 + (7 * i) % 13 for i in range(40))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = save_decoder(tmp_path_factory.mktemp(kind) / f"tiny-{kind}", kind)
        return made[kind]

    return make


def labels_of(rows, indices):
    """Padded inputs and labels as transformers' losses take them."""
    inputs = rows.batch(indices)
    labels = torch.full_like(inputs["input_ids"], -100).flatten()
    labels[inputs["predicting"] + 1] = inputs["targets"]
    shape = inputs["input_ids"].shape
    return {n: inputs[n] for n in ("input_ids", "attention_mask")} | {"labels": labels.view(shape)}


@pytest.mark.parametrize(("kind", "parts"), [("llama", 1), ("qwen2", 3)])
def test_a_whole_training_follows_pefts_loss_for_loss(kind, parts, decoder):
    """AdaLoRA with AdamW, sensitivity, fp32: packed rows here, in micro-batches; padded there."""
    step = make_step(decoder(kind), "adamw", "sensitivity", labels=CAUSAL)
    bank = step.network.bank
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(decoder(kind)),
        AdaLoraConfig(
            task_type=TaskType.CAUSAL_LM, init_r=3, target_r=2, lora_alpha=32, tinit=T_INIT,
            tfinal=T_FINAL, deltaT=DELTA_T, total_step=TOTAL, orth_reg_weight=0.1,
            target_modules=sorted({matrix.name.rpartition(".")[2] for matrix in bank.matrices}),
        ),
    )  # fmt: skip
    state = step.network.module.state_dict()
    trained = {n: p for n, p in peft.base_model.model.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * len(bank.matrices) == 3 * 14
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state[name.replace(".default", "")])
    adamw = torch.optim.AdamW(trained.values(), lr=0.0, weight_decay=0.0)
    peft.train()
    rows = token_rows(LENGTHS)
    feed, order = Feed(rows, CPU), TrainOrder(len(rows), 8, seed=1)

    for t in range(TOTAL):
        indices = order.indices(t)
        adamw.param_groups[0]["lr"] = step.learning_rate(t)
        loss = peft(**labels_of(rows, indices)).loss
        loss.backward()
        adamw.step()
        peft.base_model.update_and_allocate(t)
        adamw.zero_grad()

        step(t, [feed.batch(part) for part in indices.tensor_split(parts)])
        progress = step.means()
        assert progress.loss + progress.penalty == pytest.approx(loss.item(), rel=2e-5), t

    assert bank.mask.sum() == step.allocator.budget.target
    pattern = peft.peft_config["default"].rank_pattern
    for index, matrix in enumerate(bank.matrices):
        kept = pattern[f"{matrix.name}.lora_E.default"]
        assert bank.mask[index].bool().tolist() == kept
    for name, parameter in trained.items():
        got = bank.segments[name.replace(".default", "")].view(bank.mean)
        torch.testing.assert_close(got, parameter.data, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("parts", [(8,), (3, 5), (1, 1, 6)])
@pytest.mark.parametrize("packed", [True, False])
def test_a_step_is_one_mean_over_the_tokens_that_count(parts, packed, decoder):
    """However its rows are divided into micro-batches, packed or padded."""
    rows = token_rows(LENGTHS)
    step, twin = (make_step(decoder("llama"), "adamw", "magnitude", labels=CAUSAL) for _ in "12")
    indices = torch.arange(8)
    twin(0, [Feed(rows, CPU).batch(indices)])
    feed = Feed(token_rows(LENGTHS, packed=packed), CPU)
    step(0, [feed.batch(part) for part in indices.split(parts)])
    torch.testing.assert_close(step.network.bank.grad, twin.network.bank.grad, rtol=1e-4, atol=1e-6)
    assert step.means().loss == pytest.approx(twin.means().loss, rel=1e-6)


def test_gradient_checkpointing_changes_no_gradient(decoder):
    feed, found = Feed(token_rows(LENGTHS), CPU), []
    for checkpointing in ("off", "blocks", "selective"):
        step = make_step(
            decoder("qwen2"), "adamw", "magnitude", labels=CAUSAL,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        step(0, [feed.batch(torch.arange(8))])
        found.append(step.network.bank.grad)
    for recomputed in found[1:]:
        assert torch.equal(recomputed, found[0])


# ---- whole runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prompts")
    return {
        "train_file": write_prompts(directory / "train.jsonl", 40),
        "eval_file": write_prompts(directory / "dev.jsonl", 10, seed=1),
    }


@pytest.fixture
def options(decoder, files):
    def make(output, **changes):
        return resolve(
            {
                **files, "model": decoder("llama"), "output": str(output), "max_steps": 12,
                "batch_size": 8, "grad_accum": 2, "log_every": 3, "device": "cpu",
                "eval_every": 100, "eval_batch_size": 4,
            } | changes
        )  # fmt: skip

    return make


def evaluations(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["metrics"]["validation"] for line in lines if "metrics" in line]


@pytest.mark.parametrize(
    ("method", "optimizer", "criterion"),
    [
        ("adalora", "ivon", "snr"),
        ("adalora", "adamw", "magnitude"),
        ("lora", "ivon", None),
        ("full", "adamw", None),
        ("blora", "adamw", None),
    ],
)
def test_every_method(method, optimizer, criterion, options, tmp_path):
    changes = {} if criterion is None else {"criterion": criterion}
    run = train(options(tmp_path, method=method, optimizer=optimizer, lr=0.01, **changes))
    assert run.finished
    first, *_, last = evaluations(run)
    best = run.read_json(run.result)["best"]
    assert best["value"] == min(found["nll"] for found in evaluations(run))
    assert last["perplexity"] == pytest.approx(torch.tensor(last["nll"]).exp().item(), rel=1e-5)
    if method == "full":
        assert last["nll"] < 0.99 * first["nll"]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "group_by_length": True}])
def test_resuming_repeats_the_run(changes, options, tmp_path, killed_at):
    """Stopped at a step and started again by the same command: to the bit, but for times."""
    changes = {"checkpoint_every": "4", **changes}
    whole = train(options(tmp_path / "whole", **changes))
    with killed_at(7):
        train(options(tmp_path / "parts", **changes))
    resumed = train(options(tmp_path / "parts", **changes))
    assert differences(resumed.path, contents(whole.path)) == []


def test_the_runs_of_a_sweep_are_runs_of_their_own(options, tmp_path):
    workspace = Workspace(runs=2)
    train(options(tmp_path / "shared", seed=3), workspace=workspace)
    first = workspace.setup
    shared = train(options(tmp_path / "shared", seed=1), workspace=workspace)
    assert workspace.setup is first
    alone = train(options(tmp_path / "alone", seed=1))
    assert differences(shared.path, contents(alone.path)) == []


def test_architectures_that_are_padded(decoder, options, tmp_path, caplog):
    with caplog.at_level("INFO", "bayeslora"):
        run = train(options(tmp_path, model=decoder("bloom"), method="lora", target_rank=2))
    assert "bloom" in caplog.text
    assert "padded" in caplog.text
    assert run.finished


def test_evaluation_does_not_depend_on_the_batch_size(options, tmp_path):
    found = [
        evaluations(train(options(tmp_path / f"{size}", eval_batch_size=size, max_steps=4)))[-1]
        for size in (1, 10)
    ]
    assert found[0]["nll"] == pytest.approx(found[1]["nll"], rel=1e-6)


def test_the_posterior_is_of_the_adapters_only(options, tmp_path):
    run = train(options(tmp_path, max_steps=4))
    assert not any("lm_head" in name or "embed" in name for name in load_file(run.posterior))
