"""B-LoRA on causal language models: a whole training against a float64 twin, and its runs."""

from __future__ import annotations

import re
from contextlib import chdir

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import bayeslora_cli as bl
from bayeslora_cli.data.batching import Feed, TrainOrder
from bayeslora_cli.methods.blora.gates import THRESHOLD
from bayeslora_cli.reports.run_summary import evaluation_text
from tests.conftest import VOCABULARY
from tests.support.blora_twin import TwinTraining
from tests.support.chat_runs import chat_run
from tests.support.decoders import CAUSAL, save_decoder, token_rows, write_prompts
from tests.support.faults import contents, differences
from tests.support.jobs import Jobs
from tests.training.test_step import GATES, make_step

CPU = torch.device("cpu")
LENGTHS = tuple(3 + (7 * i) % 13 for i in range(40))
# few steps, in which some gates close and some do not
PHASES = {"t_init": 4, "t_final": 5, "schedule_steps": 29, "gate_lr": 0.5, "range_lr": 1e-2}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    made = {}

    def make(kind, **sizes):
        key = kind, *sizes.items()
        if key not in made:
            made[key] = save_decoder(tmp_path_factory.mktemp(kind) / f"tiny-{kind}", kind, **sizes)
        return made[key]

    return make


# ---- the whole training


@pytest.mark.parametrize(
    ("kind", "mode", "base", "parts", "alpha", "penalty"),
    [
        ("llama", "both", False, 1, 2048.0, 3e-4),
        ("qwen2", "rank", False, 2, 64.0, 0.0),
        pytest.param("llama", "quant", False, 2, 256.0, 1e-4, marks=pytest.mark.slow),
        pytest.param("qwen2", "both", True, 1, 256.0, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_a_whole_training_is_the_float64_twins(kind, mode, base, parts, alpha, penalty, decoder):
    """fp32 and packed against padded rows: loss and penalty at each step, gates, widths, ranks."""
    model = decoder(kind, num_hidden_layers=1)
    options = {
        "blora_mode": mode, "quantize_base": base, "init_rank": 3, "alpha": alpha,
        "lambda_quant": penalty, **PHASES,
    }  # fmt: skip
    step = make_step(model, "adamw", None, method="blora", labels=CAUSAL, **options)
    bank, ladder = step.network.bank, step.network.operands.plan.ladder
    slow = TwinTraining(model, step, {"seed": 2021, **GATES, **options})
    rows, padded = token_rows(LENGTHS), token_rows(LENGTHS, packed=False)
    feed, order = Feed(rows, CPU), TrainOrder(len(rows), 8, seed=1)
    assert step.network.packed
    assert len(bank.matrices) == len(slow.layers) == 7
    for t in range(PHASES["schedule_steps"]):
        indices = order.indices(t).tensor_split(parts)
        batches = [padded.batch(part) for part in indices]
        phase = step.allocator.schedule.phase(t).mode
        if t == PHASES["t_init"] and mode != "rank":
            slow.calibrate(batches)
        loss, more = slow.step(phase, step.learning_rate(t), batches)
        step(t, [feed.batch(part) for part in indices])
        found = step.means()
        assert found.loss == pytest.approx(loss, rel=1e-3), t
        # AdamW steps by the sign of a gradient, also where it is no larger than fp32's rounding:
        # some gates of operands that hardly matter go other ways
        assert found.penalty == pytest.approx(more, rel=2e-2 if mode != "rank" else 1e-5), t

    def leading(phi):
        """The number of open gates before the first closed one."""
        return int((phi > THRESHOLD).long().cumprod(0).sum())

    kept = [1 + leading(own.ranks) for own in slow.layers.values()]
    assert bank.mask.sum(1).tolist() == (kept if mode != "quant" else [3] * 7)
    if mode != "rank":
        widths = [
            {name: ladder[leading(phi)] for name, phi in zip(slow.names, own.bits, strict=True)}
            for own in slow.layers.values()
        ]
        assert step.network.widths(bank.mean) == widths
        assert len({width for own in widths for width in own.values()}) > 1
    if not base and mode != "quant":
        assert len(set(kept)) > 1


@pytest.mark.parametrize("mode", ["learning", "fixed"])
def test_gradient_checkpointing_changes_no_gradient(mode, decoder):
    """The layers that see one input share what they compute also when a block runs again."""
    found = []
    for checkpointing in ("off", "blocks", "selective"):
        step = make_step(
            decoder("qwen2"), "adamw", None, method="blora", labels=CAUSAL,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        bank, operands = step.network.bank, step.network.operands
        bank.mean.add_(
            torch.empty(bank.size).normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        )
        operands.mode, operands.generator = mode, torch.Generator().manual_seed(1)
        batch = Feed(token_rows(LENGTHS), CPU).batch(torch.arange(8))
        batch.pop("count")
        step._backward(batch)
        found.append(bank.local.clone())
    assert bool(found[0].any())
    for recomputed in found[1:]:
        torch.testing.assert_close(recomputed, found[0], rtol=1e-5, atol=1e-7)


# ---- whole runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prompts")
    return {
        "train_file": write_prompts(directory / "train.jsonl", 40),
        "eval_file": write_prompts(directory / "dev.jsonl", 10, seed=1),
    }


@pytest.fixture
def trained(decoder, files):
    """Train a few steps, in which some gates close."""

    def make(output, *, kind="qwen2", tied=True, **changes):
        settings = {
            **files, "model": decoder(kind, tie_word_embeddings=tied), "output": str(output),
            "max_steps": 12, "batch_size": 8, "grad_accum": 2, "log_every": 4, "device": "cpu",
            "eval_every": 100, "eval_batch_size": 4, "method": "blora", "init_rank": 3, "lr": 0.02,
            "alpha": 64.0, "t_init": 2, "t_final": 2, "gate_lr": 1.5, "lambda_quant": 3e-5,
            "lambda_rank": 1e-2,
        }  # fmt: skip
        return bl.train(**settings | changes)

    return make


def count_slowly(run):
    """Bit operations per token, matrix for matrix and product for product, from what a run says."""
    result, total = run.directory.read_result(), 0
    module = AutoModelForCausalLM.from_pretrained(run.config.model)
    bits = result["bits"] or {}
    for name, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        height, width = layer.weight.shape
        own = bits.get(name, {})
        x, weight = (own["x"], own["W"]) if "W" in own else (32, 32)
        total += sum(x * weight for _ in range(height) for _ in range(width))
        for _ in range(result["ranks"].get(name, 0)):
            total += width * own.get("x", 32) * own.get("A", 32)
            total += own.get("a", 32) * own.get("E", 32)
            total += height * own.get("h", 32) * own.get("B", 32)
    return total


@pytest.mark.parametrize(
    "changes",
    [{"quantize_base": True}, {"blora_mode": "rank", "target_modules": ("q_proj", "lm_head")}],
)
def test_bit_operations_of_the_whole_model(changes, trained, tmp_path):
    """In the result, log, card, evaluation and table, against a slow count."""
    run = trained(tmp_path, **changes)
    cost = run.result["cost"]
    assert cost["model"] == count_slowly(run)
    assert f"{cost['model']:,}\nbit operations per token" in run.directory.card.read_text()
    logged = [line for line in run.log if "loss" in line][-1]
    assert logged["relative_bit_operations_of_model"] == cost["model_relative"]
    evaluated = run.evaluate().to_json()
    assert evaluated["cost"] == cost
    assert f"of the whole model {cost['model_relative']:.2%}" in evaluation_text(evaluated)
    results = bl.results(run.path)
    (row,) = results.to_json()["rows"]
    assert row["relative_bit_operations_of_model"] == cost["model_relative"]
    assert "of model" in results.table(200)
    assert f",{cost['model_relative']}" in results.to_csv()


def test_bit_operations_beforehand(decoder, files):
    """At the initial rank with 32 bits, and the least that can come out."""
    options = {**files, "model": decoder("qwen2"), "device": "cpu"}
    found = bl.plan(**options, method="blora", init_rank=4)
    costs = found.to_json()["bit_operations"]
    sides = [(m["in"], m["out"]) for m in found.to_json()["matrices"]]
    first = sum(4 * (w + h + 1) for w, h in sides)
    linear = sum(w * h for w, h in sides)
    output = 32 * (VOCABULARY + 8)
    assert costs["adapters"] == 1024 * first
    assert costs["with_base"] == 1024 * (first + linear)
    assert costs["model"] == 1024 * (first + linear + output)
    # rank 1 and 2 bits
    assert costs["adapters_least"] == pytest.approx(1 / 4 * 2 * 2 / 1024)
    assert costs["model_least"] == pytest.approx(
        (first / 4 * 4 + 1024 * (linear + output)) / costs["model"]
    )
    assert f"and other linear layers   {costs['model']:12,}" in found.describe()
    assert "Bit operations" not in bl.plan(**options, method="adalora").describe()


@pytest.mark.parametrize(
    ("optimizer", "crash"),
    [("adamw", 6), *(pytest.param(o, c, marks=pytest.mark.slow) for o, c in
                     (("adamw", 1), ("ivon", 6), ("ivon", 11)))],
)  # fmt: skip
def test_resuming_repeats_the_run(optimizer, crash, trained, tmp_path, killed_at):
    """In each phase, to the bit."""
    changes = {"optimizer": optimizer, "checkpoint_every": "1"}
    whole = trained(tmp_path / "whole", **changes)
    with killed_at(crash):
        trained(tmp_path / "parts", **changes)
    resumed = trained(tmp_path / "parts", **changes)
    assert differences(resumed.path, contents(whole.path)) == []


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_runs_of_their_own(trained, tmp_path):
    """Over modes and seeds, of which the second finds the first one's network."""
    workspace = bl.workspace()
    for mode in ("both", "quant", "rank"):
        for seed in (3, 1):
            shared = trained(tmp_path, blora_mode=mode, seed=seed, workspace=workspace)
        alone = trained(tmp_path / "alone", blora_mode=mode, seed=1)
        assert differences(shared.path, contents(alone.path)) == []


# ---- exports


def check_quantized(run, path, base):
    """The codes are the run's, to the bit, also as the code in the export's card opens them."""
    exported = run.export("quantized", path)
    check = exported.manifest["check"]
    assert check["max_difference"] == check["allowed"] == 0
    assert check["largest_logit"] > 0.01
    names = load_file(exported.path / "quantized.safetensors").keys()
    assert any(name.endswith(".W") for name in names) == base
    assert not any("lm_head" in name or "embed" in name for name in names)
    card = (exported.path / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    text = next(iter(re.findall(r'"…"', code)))
    found = {}
    with chdir(exported.path):
        exec(code.replace(text, '"w3 w4 w5"'), found)
    inputs, logits = found["inputs"], found["logits"]
    assert torch.equal(logits, run_logits_of(run, inputs))


def run_logits_of(run, inputs):
    """The run's own logits of every token."""
    network = run.load().network
    with torch.inference_mode(), network.bank.at_mean():
        return network.model_logits(dict(inputs))


@pytest.mark.parametrize(("kind", "tied", "base"), [("qwen2", True, True), ("llama", False, False)])
def test_an_export_of_the_codes_is_the_run_to_the_bit(kind, tied, base, trained, tmp_path):
    run = trained(tmp_path, kind=kind, tied=tied, quantize_base=base)
    assert run.result["mean_rank"] < 3
    assert run.result["mean_bits"] < 16
    check_quantized(run, tmp_path / "export", base)
    assert len(run.generate(["w3 w4"], max_new_tokens=3)[0].texts) == 1


def test_a_base_in_a_gguf_file(tmp_path):
    run = chat_run(
        tmp_path, method="blora", optimizer="adamw", criterion=None, lr=0.02, quantize_base=True,
        init_rank=3, max_steps=8, gate_lr=1.0,
    )  # fmt: skip
    check_quantized(run, tmp_path / "export", True)


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_other_formats_agree_token_by_token(form, trained, tmp_path):
    """With the run without the quantizers that such a format cannot keep, which it says."""
    run = trained(tmp_path, quantize_base=form == "merged")
    manifest = run.export(form, tmp_path / form).manifest
    assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert manifest["lost"]["what"] == ["activations"]
    assert manifest["lost"]["changed"] is None
    assert manifest["lost"]["max_difference"] > 0


# ---- two processes


@pytest.mark.slow
def test_two_processes_train_one_run(decoder, files, tmp_path, warm_process):
    """Ranges are those of the whole batch, which one width shows; with gates both stay equal."""
    model = decoder("llama", num_hidden_layers=1)
    options = (
        f"--model {model} --train-file {files['train_file']} --eval-file {files['eval_file']} "
        "--method blora --init-rank 3 --max-steps 10 --batch-size 8 --device cpu --t-init 3 "
        "--t-final 3 --lr 0.02 --log-every 1 --eval-every 100"
    )
    jobs = Jobs(warm_process, tmp_path, options.split())
    one_width = ("--blora-mode", "quant", "--bit-ladder", "16")
    runs = [jobs.train(f"ladder-{n}", n, *one_width) for n in (1, 2)]
    both = jobs.train("both", 2, "--gate-lr", "1")
    assert runs[1].codes == both.codes == [0, 0], runs[1].texts + both.texts
    for ours, theirs in zip(*(run.traces[0] for run in runs), strict=True):
        assert ours["loss"][0] == pytest.approx(theirs["loss"][0], rel=1e-4)
    for first, second in zip(*both.traces, strict=True):
        assert [first["mean"], first["mask"]] == [second["mean"], second["mask"]]
