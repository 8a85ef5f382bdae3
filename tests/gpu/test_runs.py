"""Whole runs on a CUDA device: `pytest -m gpu tests/gpu/test_runs.py`."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.training import assembly
from bayeslora_cli.training.assembly import Workspace
from bayeslora_cli.training.loop import train
from bayeslora_cli.training.step import TrainStep
from tests.support.evaluation import evaluated
from tests.support.faults import contents, differences
from tests.support.task_files import tagged, write_lines
from tests.support.warm_process import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("a_gpu"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]


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
    found = evaluated(run.path, device="cuda")["metrics"]["validation"]["nll"]
    # bf16 products round differently for other batch shapes
    assert found == pytest.approx(expected, abs=1e-5 if precision == "fp32" else 2e-2)
    on_cpu = evaluated(run.path, device="cpu")["metrics"]["validation"]["nll"]
    assert on_cpu == pytest.approx(expected, abs=1e-4 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_words_and_their_class_weights(packing, backbone, tmp_path):
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in tagged(60)]
    run = train(
        resolve(
            {
                "train_file": write_lines(tmp_path / "rows.jsonl", rows),
                "model": backbone("bert", 0.1), "output": str(tmp_path / "runs"), "max_steps": 13,
                "batch_size": 8, "max_length": 32, "device": "cuda", "optimizer": "ivon",
                "packing": packing, "class_weights": "balanced",
            }
        )
    )  # fmt: skip
    expected = run.read_json(run.result)["best_at_budget"]["metrics"]["validation"]["nll"]
    for device in ("cuda", "cpu"):
        found = evaluated(run.path, device=device)["metrics"]["validation"]["nll"]
        assert found == pytest.approx(expected, abs=1e-4)


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
        evaluated(run.path, sampling=Sampling(8, temperature, seed=1), device=device)
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
    "--method full --optimizer adamw --max-grad-norm 0.5 --weight-decay 0.1 "
    "--weight-decay-of matrices --class-weights balanced --lr-schedule cosine --patience 99",
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
    captured, compiled = [], []
    original = GraphRunner._capture

    def noted(self, key, piece, inputs):
        captured.append(key)
        return original(self, key, piece, inputs)

    @contextmanager
    def once(config, block, key):
        compiled.append(key)
        yield

    monkeypatch.setattr(GraphRunner, "_capture", noted)
    monkeypatch.setattr(assembly, "compiled_once", once)
    workspace, counts, values = Workspace(), [], []
    for seed in (1, 2, 1, 1):
        run = train(
            resolve(
                {
                    "task": "rte", "data": rte, "model": backbone("bert", 0.1), "max_steps": 40,
                    "output": str(tmp_path / str(len(counts))), "batch_size": 16, "seed": seed,
                    "max_length": 16, "device": "cuda", "compile": compile,
                }
            ),
            workspace=workspace,
        )  # fmt: skip
        counts.append(len(captured))
        values.append(run.read_json(run.result)["last"]["metrics"]["validation"]["nll"])
    assert counts[0] > 4
    assert counts[1] < 2 * counts[0]
    assert len(compiled) == len(set(compiled))
    assert (set(compiled) >= set(captured)) == (compile == "on")
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
