"""Two processes on two GPUs, over NCCL: `pytest -m gpu tests/gpu/test_several_processes.py`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.support.warm_process import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def torchrun(processes: int, *command: str) -> str:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), "-m", *command,
        ],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_is_the_eager_one(precision, backbone):
    """To the bit, all-reduce, noise and dropout included."""
    text = torchrun(2, "tests.support.two_gpus", backbone("bert", 0.1), precision)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(lines) == 5, text
    for line in lines:
        assert line["failure"] is None, line
        assert line["differ"] == [[], []], line


def lines(run, name):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_two_processes_train_as_one_does(kind, backbone, rte, tmp_path):
    """AdamW, dropout off, fp32: losses to rounding, the same ranks; evaluation is spread."""
    runs = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        torchrun(
            processes, "bayeslora_cli", "train", "--task", "rte", "--data", rte,
            "--model", backbone(kind), "--optimizer", "adamw", "--max-steps", "40",
            "--batch-size", "9", "--max-length", "16", "--log-every", "5", "--device", "cuda",
            "--eval-batch-size", "7", "--output", str(output), "--deterministic",
        )  # fmt: skip
        (run,) = output.glob("*/*/seed-*")
        runs.append(run)
    alone, both = (lines(run, "metrics.jsonl") for run in runs)
    for one, two in zip(alone, both, strict=True):
        if "metrics" in one:
            expected = one["metrics"]["validation"]["nll"]
            assert two["metrics"]["validation"]["nll"] == pytest.approx(expected, rel=1e-4)
        else:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert lines(runs[1], "ranks.jsonl") == lines(runs[0], "ranks.jsonl")
    assert json.loads((runs[1] / "environment.json").read_text())["processes"] == 2


def test_compiled_processes_end(backbone, rte, tmp_path):
    """The connections are held by captured graphs, and those by compiled functions."""
    torchrun(
        2, "bayeslora_cli", "train", "--task", "rte", "--data", rte, "--model", backbone("bert"),
        "--max-steps", "8", "--batch-size", "8", "--max-length", "16", "--device", "cuda",
        "--compile", "on", "--output", str(tmp_path),
    )  # fmt: skip
    (run,) = tmp_path.glob("*/*/seed-*")
    assert (run / "result.json").is_file()


def test_more_processes_than_gpus_are_refused(backbone, rte, tmp_path):
    count = torch.cuda.device_count() + 1
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(count), "-m", "bayeslora_cli", "train", "--task", "rte",
            "--data", rte, "--model", backbone("bert"), "--max-steps", "3",
            "--output", str(tmp_path),
        ],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count(f"error: {count} processes have {count - 1} GPUs") == 1
