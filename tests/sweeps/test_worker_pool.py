"""Runs as processes: how many at a time, on which GPU, and what becomes of those that fail."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from bayeslora_cli.errors import Preempted
from bayeslora_cli.execution.signals import listening
from bayeslora_cli.sweeps import worker_pool, workers
from bayeslora_cli.sweeps.grid import expand
from bayeslora_cli.sweeps.worker_pool import run_jobs
from bayeslora_cli.sweeps.workers import slot_environments, they_take_turns, visible_gpus

# stands in for a training: does what the seed says, and leaves when it came and went
CHILD = """
import json, os, signal, sys, time
from pathlib import Path

arguments = sys.argv[1:]
seed = int(arguments[arguments.index("--seed") + 1])
out = Path(arguments[arguments.index("--output") + 1])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
began = time.time()
print("step 3/9  loss 0.5", flush=True)
(out / f"began-{seed}").touch()
if seed == 13:
    print("warning: x\\nerror: --lr 1: too high\\nand more", file=sys.stderr)
    sys.exit(2)
if seed == 14:
    raise RuntimeError("a bug")
if seed == 15:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 75:
    sys.exit(75)
while time.time() < began + (60 if seed >= 100 else 0.3):
    time.sleep(0.02)
    if stopped:
        print("error: stopped, a checkpoint at step 3", file=sys.stderr)
        sys.exit(75)
print("step 9/9  done")
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
found = {"began": began, "ended": time.time(), "env": {n: os.environ.get(n) for n in names}}
(out / f"{seed}.json").write_text(json.dumps(found))
"""


# the same of a `worker`, which stays: fails at seed 14, and leaves when it has said that 15 is done
WORKER = """
import json, os, socket, sys, time
from pathlib import Path

channel = socket.socket(fileno=0)
arguments = sys.argv[1:]
orders = channel.makefile("r")
while True:
    seed = int(arguments[arguments.index("--seed") + 1])
    out = Path(arguments[arguments.index("--output") + 1])
    print("this is", seed, flush=True)
    if seed == 14:
        sys.exit("error: 14")
    if seed >= 100:
        time.sleep(60)
    found = {"arguments": arguments, "pid": os.getpid(), "began": time.time()}
    time.sleep(0.2)
    name = "-".join(arguments).replace("/", "_")[-60:]
    (out / f"{name}.json").write_text(json.dumps(found | {"ended": time.time()}))
    channel.sendall(b"\\n")
    if seed == 15:
        time.sleep(0.3)  # and is given a run meanwhile that it never sees
    line = "" if seed == 15 else orders.readline()
    if not line:
        break
    order = json.loads(line)
    arguments = order["arguments"]
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
(out / f"left-{os.getpid()}").touch()
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the seeds: train(seeds, jobs) -> problems."""
    program = tmp_path / "child.py"
    monkeypatch.setattr(worker_pool, "POLL", 0.02)
    monkeypatch.setattr(workers, "visible_gpus", list)

    def run_it(seeds, jobs, console=None, child=CHILD, **typed):
        program.write_text(child)
        console = console or Console(file=io.StringIO(), force_terminal=False)
        typed = {"task": "rte", "output": str(tmp_path), "seed": seeds, **typed}
        with listening() as stop:
            return run_jobs(expand(typed).runs, jobs, console, stop, [sys.executable, str(program)])

    return run_it


def found(tmp_path):
    return {int(p.stem): json.loads(p.read_text()) for p in tmp_path.glob("*.json")}


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_as_many_at_a_time_as_asked_for(train, tmp_path, jobs):
    assert train("1-5", jobs) == {}
    times = found(tmp_path)
    assert times.keys() == {1, 2, 3, 4, 5}
    for run in times.values():
        at_once = [o for o in times.values() if o["began"] <= run["began"] < o["ended"]]
        assert len(at_once) <= jobs
    logs = sorted(path.name for path in tmp_path.rglob("*.log"))
    assert logs == [f"seed-{seed}.log" for seed in range(1, 6)]


def test_what_fails_is_named_and_keeps_nobody_back(train, tmp_path, caplog):
    problems = train("1,13-15,2", 2)
    assert found(tmp_path).keys() == {1, 2}
    where = "rte-adalora-ivon-snr-r2/seed-"
    assert {name.removeprefix(where) for name in problems} == {"13", "14", "15"}
    assert re.fullmatch(
        r"--lr 1: too high\nand more \(exit code 2, .*/seed-13\.log\)", problems[f"{where}13"]
    )
    assert problems[f"{where}14"].startswith("RuntimeError: a bug (exit code 1, ")
    assert problems[f"{where}15"].startswith("killed by SIGKILL; its log is ")
    assert f"{where}13 failed: --lr 1" in caplog.text


def test_a_log_that_goes_on_is_read_from_its_new_end(train, tmp_path):
    train("13", 1)
    (log,) = tmp_path.rglob("*.log")
    log.write_text("error: an old one\n" * 3)
    (problem,) = train("14", 1).values()
    assert "RuntimeError" in problem
    (problem,) = train("13", 1).values()
    assert problem.startswith("--lr 1")
    assert log.read_text().startswith("error: an old one")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_them_all_and_they_are_waited_for(train, tmp_path, number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send():
        while not all((tmp_path / f"began-{n}").exists() for n in (100, 101)):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    try:
        with pytest.raises(Preempted) as caught:
            train("100-103", 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(caught.value) == (
        f"stopped by {number.name}: 0 of 4 runs done, 2 stopped. "
        "Run the same command again to go on"
    )
    assert not (tmp_path / "began-102").exists()
    logs = [path.read_text() for path in tmp_path.rglob("*.log")]
    assert len(logs) == 2
    assert all("a checkpoint at step 3" in text for text in logs)


def test_one_that_was_stopped_alone_makes_the_command_one_to_repeat(train, tmp_path):
    with pytest.raises(Preempted, match="2 of 3 runs done, 1 stopped") as caught:
        train("1,75,2", 1)
    assert caught.value.exit_code == 75
    assert found(tmp_path).keys() == {1, 2}


def test_a_terminal_has_a_line_a_run(train, caplog):
    caplog.set_level(logging.INFO, "bayeslora")
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    train("1-3", 2, console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", console.file.getvalue())
    assert re.search(r"0 of 3 runs done\s+rte-\S+/seed-1  step 3/9  loss 0.5", text)
    assert "of 3 runs done" not in caplog.text


# ---- processes that stay


def test_a_process_goes_on_with_runs_of_its_kind(train, tmp_path):
    """And when there are none left helps with another's."""
    assert train("1-3", 2, child=WORKER, criterion="snr,magnitude,precision") == {}
    by_process = {}
    for run in sorted(found_runs(tmp_path), key=lambda run: run["began"]):
        criterion = run["arguments"][run["arguments"].index("--criterion") + 1]
        by_process.setdefault(run["pid"], []).append(criterion)
    assert len(by_process) == 2
    first, second = by_process.values()
    assert len(first) + len(second) == 9
    for kinds in (first, second):
        assert len(set(kinds[:3])) == 1
        assert len(set(kinds[3:])) == 1
    assert first[0] != second[0]
    assert len(list(tmp_path.glob("left-*"))) == 2
    logs = {path.name: path.read_text() for path in tmp_path.rglob("*-snr-r2/*.log")}
    assert logs == {f"seed-{seed}.log": f"this is {seed}\n" for seed in (1, 2, 3)}


def test_a_process_is_replaced_after_a_failure(train, tmp_path):
    (problem,) = train("13-17", 1, child=WORKER).values()
    assert problem.startswith("14 (exit code 1, ")
    runs = sorted(found_runs(tmp_path), key=lambda run: run["began"])
    assert [run["arguments"][-1] for run in runs] == ["13", "15", "16", "17"]
    pids = [run["pid"] for run in runs]
    assert pids[0] != pids[1]
    assert pids[1] != pids[2]  # it was gone
    assert pids[2] == pids[3]


def test_a_signal_finds_the_run_that_a_process_is_at(train, tmp_path):
    def send():
        while not list(tmp_path.glob("*.json")):
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Preempted, match="1 of 3 runs done, 1 failed"):  # this child saves nothing
        train("1,100,101", 1, child=WORKER)


def found_runs(tmp_path):
    return [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]


# ---- the machine


def test_a_gpu_each(monkeypatch):
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["2", "GPU-x"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slot_environments(2, "auto") == [
        {"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "GPU-x"},
    ]  # fmt: skip
    shared = [e["CUDA_VISIBLE_DEVICES"] for e in slot_environments(4, "cuda")]
    assert shared == ["2", "GPU-x", "2", "GPU-x"]
    for device in ("cpu", "cuda:1"):
        assert slot_environments(2, device) == [{}, {}]
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["0"])
    assert slot_environments(2, "auto") == [{}, {}]


def test_the_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(workers, "visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert slot_environments(3, "auto") == [{"OMP_NUM_THREADS": "2"}] * 3
    assert slot_environments(100, "cpu")[99] == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("gpus", "jobs", "device", "expected"),
    [
        (["0"], 2, "auto", True), (["0"], 1, "auto", False), (["0", "1"], 2, "cuda", False),
        (["0", "1"], 3, "cuda", True), (["0", "1"], 2, "cuda:1", True), (["0"], 8, "cpu", False),
        ([], 8, "auto", False),
    ],
)  # fmt: skip
def test_taking_turns_on_a_gpu_is_said(gpus, jobs, device, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "visible_gpus", lambda: gpus)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert they_take_turns(jobs, device) == expected
    (tmp_path / "control").touch()  # of MPS
    assert not they_take_turns(jobs, device)


def test_it_is_said_once(train, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["0"])
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    train("1-3", 2)
    assert caplog.text.count("nvidia-cuda-mps-control -d") == 1


@pytest.mark.parametrize(
    ("typed", "count", "names"),
    [(None, 2, ["0", "1"]), ("3, 5", 2, ["3", "5"]), ("GPU-a,x", 1, ["GPU-a"]), ("", 0, [])],
)
def test_the_gpus_that_there_are(monkeypatch, typed, count, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if typed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", typed)
    assert visible_gpus() == names
