"""The reader of stdout or stderr goes away, or there was none: the training goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESETS = [sys.executable, "-m", "bayeslora_cli", "presets"]


def shell(command, **options):
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def test_readers_that_go_away(backbone, rte, tmp_path, warm_process):
    """As `true` does in `bayeslora ... 2>&1 | true`."""
    os.mkfifo(tmp_path / "pipe")
    started = warm_process.start(
        "bayeslora_cli", "train", "--task", "rte", "--data", rte, "--model", backbone("bert"),
        "--max-steps", 8, "--log-every", 1, "--batch-size", 8, "--max-length", 16,
        "--device", "cpu", "--output", tmp_path / "runs",
        stdout=str(tmp_path / "pipe"), stderr=str(tmp_path / "pipe"),
    )  # fmt: skip
    with open(tmp_path / "pipe"):
        pass
    assert started.wait() == 0
    assert len(list(tmp_path.rglob("result.json"))) == 1


@pytest.mark.parametrize("closed", ["2>&-", "| true", ">&-"])
def test_no_traceback(closed):
    done = shell(f"set -o pipefail; {' '.join(PRESETS)} {closed}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_full_stdout():
    done = shell(f"{' '.join(PRESETS)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write stdout: No space left")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", ["~nouser/x.csv", "x" * 5000])
def test_paths_that_cannot_be(path):
    done = subprocess.run(
        [sys.executable, "-m", "bayeslora_cli", "train", "--train-file", path, "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
