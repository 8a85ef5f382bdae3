"""The same engine on a CUDA device: `pytest -m gpu tests/test_gpu.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from bayeslora_cli import quantizer
from bayeslora_cli.capture import GraphRunner
from bayeslora_cli.engine import train
from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.evaluate import evaluate_run
from bayeslora_cli.model import Network
from bayeslora_cli.passes import Sampling
from bayeslora_cli.resolve import resolve
from bayeslora_cli.shared import Shared
from bayeslora_cli.step import TrainStep

from .faults import ROOT, contents, differences
from .test_step import METHODS, T_FINAL, T_INIT, TOTAL, batches, make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("marked gpu, but there is no CUDA device")


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA synchronisations are errors in all of the step but the backbone's forward pass.

    What the backbone does is not ours: BERT's attention asks whether its mask is all ones.
    """
    original = Network.logits

    def logits(self, batch):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return original(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(Network, "logits", logits)
    yield
    torch.cuda.set_sync_debug_mode("default")


def to_gpu(batch):
    return {k: v.cuda() for k, v in batch.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_the_step_never_waits(method, optimizer, criterion, precision, backbone, strict):
    step = make_step(
        backbone("bert"), optimizer, criterion, method=method, device="cuda", precision=precision
    )
    data = [to_gpu(b) for b in batches()]
    step(0, [data[0]])
    torch.cuda.set_sync_debug_mode("error")
    for t in (T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [data[t]])
    torch.cuda.set_sync_debug_mode("default")
    assert step.bad_step() is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ladder", [(2, 4, 8, 16), (8,)])
@pytest.mark.parametrize(("rows", "size"), [(1, 7), (1, 2**17 + 3), (5, 9000)])
def test_fused_quantizers_are_torchs(rows, size, ladder, kind, monkeypatch):
    """As far as rounding goes; a NaN is not lost."""
    assert quantizer.HAS_TRITON
    generator = torch.Generator("cuda").manual_seed(0)
    data = torch.randn(2, rows, size, generator=generator, device="cuda").to(kind)
    log_range = torch.randn(rows, generator=generator, device="cuda") * 0.3
    signed = torch.arange(rows, device="cuda").remainder(2).float()
    divisors = torch.tensor(quantizer.intervals(ladder), device="cuda").float()
    shares = torch.rand(rows, len(ladder), generator=generator, device="cuda").softmax(-1)
    by = quantizer.quantizers(log_range, signed, divisors.expand(shares.shape), shares)
    found = []
    for fused in (True, False):
        monkeypatch.setattr(quantizer, "HAS_TRITON", fused)
        x, learned = data[0].clone().requires_grad_(), by.learned.clone().requires_grad_()
        out = quantizer.quantize(x, quantizer.Quantizers(learned, by.constants))
        out.backward(data[1])
        found.append((out.detach(), x.grad, learned.grad))
    for a, b in list(zip(*found, strict=True))[:2]:
        torch.testing.assert_close(a, b, rtol=1e-6 if kind == torch.float32 else 1e-2, atol=1e-6)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-2)
    monkeypatch.setattr(quantizer, "HAS_TRITON", True)
    bad = data[0].clone()
    bad[0, 0] = float("nan")
    assert bool(quantizer.quantize(bad, by)[0, 0].isnan())


@pytest.fixture
def side_stream() -> Iterator[None]:
    """Captures want another stream than the default one."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.cuda.synchronize()


def trained(step: TrainStep) -> dict[str, torch.Tensor]:
    """All that 60 steps on batches of three widths leave."""
    data = {width: [to_gpu(b) for b in batches(length=width)] for width in (6, 10, 17)}
    torch.manual_seed(3)
    for t in range(TOTAL):
        batch = data[(6, 10, 17)[t % 3]][t]
        step(t, [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}])
    parts = {"bank": step.network.bank, "optimizer": step.optimizer, "step": step}
    if step.allocator is not None:
        step.allocator.fetch_history()
        parts["allocator"] = step.allocator
    return {f"{n}/{k}": v for n, part in parts.items() for k, v in part.tensors().items()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "optimizer", "criterion"), METHODS)
def test_a_captured_step_is_the_eager_one(
    method, optimizer, criterion, precision, dropout, backbone, side_stream
):
    """To the bit, two passes a step, dropout and noise included: a graph draws what they draw."""
    options = {"method": method, "device": "cuda", "precision": precision}
    options["samples"] = 2 if optimizer == "ivon" else 1
    eager = trained(make_step(backbone("bert", dropout), optimizer, criterion, **options))
    step = make_step(
        backbone("bert", dropout), optimizer, criterion, **options,
        runner=lambda noise: GraphRunner([noise]),
    )  # fmt: skip
    captured = trained(step)
    assert step.runner.failure is None
    assert len(step.runner._graphs) >= 6
    assert captured.keys() == eager.keys()
    assert [name for name in eager if not torch.equal(eager[name], captured[name])] == []


def test_what_cannot_be_captured_runs_all_the_same(backbone, side_stream, monkeypatch, caplog):
    """A backbone that asks the device for a value: one notice, and the eager run's result."""
    original = Network.logits

    def curious(self, batch):
        assert int(batch["input_ids"].max()) >= 0
        return original(self, batch)

    monkeypatch.setattr(Network, "logits", curious)
    options = {"device": "cuda"}
    eager = trained(make_step(backbone("bert", 0.1), "ivon", "snr", **options))
    step = make_step(
        backbone("bert", 0.1), "ivon", "snr", **options, runner=lambda noise: GraphRunner([noise])
    )
    captured = trained(step)
    assert step.runner.failure is not None
    assert len([r for r in caplog.records if "not captured" in r.message]) == 1
    assert [name for name in eager if not torch.equal(eager[name], captured[name])] == []


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
def test_fp32_follows_the_cpu(kind, backbone):
    """AdamW and sensitivity, dropout off: losses and the final masks."""
    losses: dict[str, list[float]] = {}
    masks = {}
    for device in ("cpu", "cuda"):
        step: TrainStep = make_step(backbone(kind), "adamw", "sensitivity", device=device)
        losses[device] = []
        for t, batch in enumerate(batches()):
            step(t, [{k: v.to(device) for k, v in batch.items()}])
            losses[device].append(step.progress().loss)
        masks[device] = step.network.bank.mask.cpu()
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
    assert torch.equal(masks["cpu"], masks["cuda"])


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_run_and_its_evaluation(precision, optimizer, backbone, rte, tmp_path):
    run = train(
        resolve(
            {
                "task": "rte", "data": rte, "model": backbone("deberta-v2", 0.1),
                "output": str(tmp_path), "max_steps": 13, "batch_size": 16, "max_length": 16,
                "device": "cuda", "precision": precision, "optimizer": optimizer,
            }
        )
    )  # fmt: skip
    expected = run.read_json(run.result)["best_at_budget"]["metrics"]["validation"]["nll"]
    found = evaluate_run(run.path, device="cuda")["metrics"]["validation"]["nll"]
    # bf16 products round differently for other batch shapes
    assert found == pytest.approx(expected, abs=1e-5 if precision == "fp32" else 2e-2)
    on_cpu = evaluate_run(run.path, device="cpu")["metrics"]["validation"]["nll"]
    assert on_cpu == pytest.approx(expected, abs=1e-4 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_samples_are_the_cpus(temperature, backbone, rte, tmp_path):
    """The noise is drawn on the CPU: the seed means the same weights on every device."""
    run = train(
        resolve(
            {
                "task": "rte", "data": rte, "model": backbone("deberta-v2", 0.1),
                "output": str(tmp_path), "max_steps": 6, "batch_size": 16, "max_length": 16,
                "device": "cuda", "optimizer": "ivon",
            }
        )
    )  # fmt: skip
    found = [
        evaluate_run(run.path, sampling=Sampling(8, temperature, seed=1), device=device)
        for device in ("cpu", "cuda")
    ]
    for at in ("metrics", "sampled"):
        ours, theirs = (result[at]["validation"] for result in found)
        for name in ("nll", "brier"):  # the others jump where a probability crosses an edge
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    assert found[0]["sampled"]["validation"]["nll"] != found[0]["metrics"]["validation"]["nll"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_a_deterministic_run_resumes_to_the_bit(
    optimizer, kind, precision, backbone, rte, tmp_path, monkeypatch
):
    """With dropout: the device's generators are part of the state."""

    def run_in(name):
        return train(
            resolve(
                {
                    "task": "rte", "data": rte, "model": backbone(kind, 0.1),
                    "output": str(tmp_path / name), "max_steps": 13, "batch_size": 16,
                    "max_length": 16, "device": "cuda", "precision": precision, "log_every": 3,
                    "optimizer": optimizer, "deterministic": True, "checkpoint_every": "3",
                }
            )
        )  # fmt: skip

    class Killed(BaseException):
        pass

    def killed(self, step, micro_batches):
        if step == 8:
            raise Killed
        original(self, step, micro_batches)

    whole = run_in("whole")
    original = TrainStep.__call__
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            run_in("parts")
    resumed = run_in("parts")
    assert differences(resumed.path, contents(whole.path)) == []


SHARED = [
    "--optimizer ivon --criterion sensitivity --train-samples 2",
    "--optimizer ivon --criterion snr --precision bf16",
    "--optimizer adamw --criterion magnitude --grad-accum 2",
    "--method lora",
    "--method full --optimizer ivon --precision bf16",
    "--method full --optimizer adamw",
    "--method blora --t-init 10 --t-final 10 --gate-lr 0.3 --precision bf16",
    "--method blora --optimizer ivon --t-init 10 --t-final 10 --quantize-base",
]


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
@pytest.mark.parametrize("options", SHARED)
def test_seeds_of_one_process_are_those_of_fresh_ones(options, kind, backbone, rte, tmp_path):
    """To the bit: the second run replays graphs that the first one has captured."""

    def run_it(name, *seeds):
        command = [
            sys.executable, "-m", "bayeslora_cli", "train", "--task", "rte", "--data", rte,
            "--model", backbone(kind, 0.1), "--output", str(tmp_path / name), "--device", "cuda",
            "--max-steps", "40", "--batch-size", "12", "--max-length", "16", "--log-every", "7",
            "--checkpoint-every", "15", "--deterministic", "--verbose", *options.split(), *seeds,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "not captured" not in done.stderr
        return done.stderr

    assert run_it("shared", "--seeds", "2,3,1").count("the last run's network is used again") == 2
    run_it("alone", "--seed", "1")
    (alone,) = (tmp_path / "alone").glob("*/*/seed-1")
    (shared,) = (tmp_path / "shared").glob("*/*/seed-1")
    assert differences(shared, contents(alone)) == []


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_second_seed_captures_and_compiles_next_to_nothing(
    compile, backbone, rte, tmp_path, monkeypatch
):
    captured = []
    original = GraphRunner._capture

    def noted(self, key, piece, inputs):
        captured.append(key)
        return original(self, key, piece, inputs)

    monkeypatch.setattr(GraphRunner, "_capture", noted)
    shared, counts, values = Shared(), [], []
    for seed in (1, 2, 1, 1):
        run = train(
            resolve(
                {
                    "task": "rte", "data": rte, "model": backbone("bert", 0.1), "max_steps": 40,
                    "output": str(tmp_path / str(len(counts))), "batch_size": 16, "seed": seed,
                    "max_length": 16, "device": "cuda", "compile": compile,
                }
            ),
            shared=shared,
        )  # fmt: skip
        counts.append(len(captured))
        values.append(run.read_json(run.result)["last"]["metrics"]["validation"]["nll"])
    assert counts[0] > 4
    assert counts[1] < 2 * counts[0]
    assert counts[3] == counts[2]  # what a run meets once is captured when the next one meets it
    assert values[2:] == pytest.approx(values[:1] * 2, abs=1e-4)


def test_out_of_memory_is_explained(backbone, rte, tmp_path, monkeypatch):
    def greedy(self, step, micro_batches):
        torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr(TrainStep, "__call__", greedy)
    with pytest.raises(BayesloraError, match="out of GPU memory"):
        train(
            resolve(
                {
                    "task": "rte", "data": rte, "model": backbone("bert"), "max_steps": 4,
                    "output": str(tmp_path), "device": "cuda",
                }
            )
        )  # fmt: skip
