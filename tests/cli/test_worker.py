"""The process of `--jobs` that stays: what it is told, and what it says."""

from __future__ import annotations

import json
import socket
import tempfile
import time

import pytest

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.training.loop import train
from tests.support.faults import contents, differences


@pytest.fixture
def options(backbone, rte):
    return [
        "train", "--task", "rte", "--data", rte, "--model", backbone("bert", dropout=0.1),
        "--max-steps", "4", "--batch-size", "8", "--device", "cpu", "--verbose",
    ]  # fmt: skip


@pytest.fixture
def worker(options, tmp_path, warm_process):
    """Start one with its first run: (process, its channel)."""
    started = []

    def start(*arguments):
        log = str(tmp_path / "first")
        # a socket's path is short, and tmp_path need not be
        with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{place}/.socket")
            listener.listen()
            process = warm_process.start(
                "bayeslora_cli.cli.worker", *options, *arguments,
                stdin=f"{place}/.socket", stdout=log, stderr=log,
            )  # fmt: skip
            ours, _ = listener.accept()
        ours.settimeout(120)
        started.append((process, ours))
        return process, ours

    yield start
    for process, channel in started:
        channel.close()
        process.kill()
        process.wait()


def give(channel, log, arguments):
    log.touch()
    order = {"arguments": arguments, "log": str(log)}
    channel.sendall(json.dumps(order).encode() + b"\n")


def test_runs_one_after_the_other_until_one_fails(worker, options, backbone, rte, tmp_path):
    out = ("--output", str(tmp_path / "out"))
    process, channel = worker(*out, "--seed", "1")
    assert channel.recv(9) == b"\n"
    give(channel, tmp_path / "second", [*options, *out, "--seed", "2"])
    assert channel.recv(9) == b"\n"
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    assert first.splitlines()[-1].endswith("seed-1")
    assert "used again" not in first
    assert "the last run's network is used again" in second
    assert second.splitlines()[-1].endswith("seed-2")
    (run,) = tmp_path.glob("out/*/*/seed-2")
    command = json.loads((run / "environment.json").read_text())["command"]
    assert command[1:] == [*options, *out, "--seed", "2"]
    typed = {
        "task": "rte", "data": rte, "model": backbone("bert", 0.1), "max_steps": 4, "seed": 2,
        "batch_size": 8, "device": "cpu", "output": str(tmp_path / "alone"),
    }  # fmt: skip
    assert differences(run, contents(train(resolve(typed)).path)) == []

    give(channel, tmp_path / "third", [*options, *out, "--lr", "-1"])
    assert channel.recv(9) == b""
    assert process.wait() == 2
    assert (tmp_path / "third").read_text().startswith("error: --lr -1.0: must be positive")


def test_it_saves_its_state_when_whoever_gave_the_run_is_gone(worker, tmp_path):
    process, channel = worker("--output", str(tmp_path / "out"), "--max-steps", "100000")
    until = time.monotonic() + 120
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.05)
    channel.close()
    assert process.wait() == 75
    assert "stopped by SIGTERM: checkpoint at step " in (tmp_path / "first").read_text()


def test_it_leaves_when_there_are_no_more(worker, tmp_path):
    process, channel = worker("--output", str(tmp_path / "out"))
    assert channel.recv(9) == b"\n"
    channel.close()
    assert process.wait() == 0
    assert "Traceback" not in (tmp_path / "first").read_text()
