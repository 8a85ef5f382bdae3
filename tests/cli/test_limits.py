"""Machines with too little: memory, threads, disk. One message and exit code 1, no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayeslora_cli.errors import EXIT_FAILED, EXIT_USER, explained

ROOT = Path(__file__).parents[2]


def train(limit, backbone, rte, output, *before):
    command = [sys.executable, "-m", "bayeslora_cli", "train", "--task", "rte", "--data", rte]
    command += ["--model", backbone("bert"), "--max-steps", "1", "--device", "cpu"]
    return subprocess.run(
        [*before, "bash", "-c", f'{limit}; exec "$@"', "bash", *command, "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_limit_of_memory(backbone, rte, tmp_path):
    """A library that cannot be loaded: with a little more, it depends on which one gives up."""
    done = train("ulimit -v 300000", backbone, rte, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: out of memory on the CPU; lower --batch")


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, whom no limit holds, and setpriv, to be another user",
)
def test_a_limit_of_threads(backbone, rte, tmp_path):
    """As a user who may read and write all files, and start no thread."""
    may = "+dac_override"
    done = train(
        "ulimit -u 1", backbone, rte, tmp_path,
        "setpriv", "--reuid=64123", f"--inh-caps=-all,{may}", f"--ambient-caps=-all,{may}",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no thread can be started: raise the lim")


class PanicException(BaseException):
    """As the tokenizers' library raises it."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), EXIT_FAILED, "out of memory on the CPU"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), EXIT_FAILED, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: no"), EXIT_FAILED, "out of memory"),
        (RuntimeError("std::bad_alloc"), EXIT_FAILED, "out of memory"),
        (ImportError("x.so: failed to map segment from shared object"), EXIT_FAILED, "of memory"),
        (RuntimeError("can't start new thread"), EXIT_FAILED, "ulimit -u"),
        (PanicException("ThreadPoolBuildError { kind: IOError }"), EXIT_FAILED, "ulimit -u"),
        (ValueError("embedded null byte"), EXIT_USER, "NUL"),
        (RuntimeError("Could not determine home directory."), EXIT_USER, "begins with ~"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "y" * 5000), EXIT_USER, "yyy…: the pa"),
    ],
)
def test_explained(error, code, message):
    found = explained(error)
    assert found is not None
    assert message in str(found)
    assert len(str(found)) < 300
    assert found.exit_code == code


def test_what_is_not_the_machines():
    for error in (ValueError("x"), OSError(errno.ENOENT, "no"), KeyError("a"), RuntimeError("b")):
        assert explained(error) is None


def test_torch_says_what_is_read():
    """The name of its allocator, by which its error is known."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert explained(caught.value) is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ({"stdout": "/dev/full"}, 1),
        ({"stderr": "/dev/full"}, 0),
        ({"stdout": None, "stderr": None}, 0),
    ],
)
def test_a_full_disk_under_the_streams(streams, code, backbone, rte, tmp_path, warm_process):
    """Of stdout it is told, of stderr it cannot be; the run is finished either way."""
    said = tmp_path / "said"
    said.touch()
    done = warm_process.start(
        "bayeslora_cli", "train", "--task", "rte", "--data", rte, "--device", "cpu", "--model",
        backbone("bert"), "--max-steps", 2, "--output", tmp_path / "out",
        **{"stdout": str(said), "stderr": str(said)} | streams,
    ).wait()  # fmt: skip
    lines = said.read_text().splitlines()
    assert len(list(tmp_path.rglob("result.json"))) == 1, lines
    assert "Traceback" not in said.read_text()
    assert done == code, lines
    if code:
        assert lines[-1].startswith("error: cannot write stdout: No space")
