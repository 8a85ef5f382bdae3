"""What the page reads of runs in any state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from time import sleep

import pytest

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.page.records import load_records
from tests.support.page_runs import frozen, write_shown


@pytest.fixture
def unfinished(tmp_path):
    return frozen(tmp_path, "adalora-ivon-snr", "unfinished")


def lock(run, process):
    (run / ".lock").write_text(f"process {process} on {socket.gethostname()} since now\n")


def test_a_finished_run(tmp_path):
    run = write_shown(tmp_path, score=0.7)
    (record,), results = load_records([tmp_path])
    assert record.state == "finished"
    assert record.result == json.loads(run.result.read_text())
    assert (record.group, record.column) == (results.rows[0].name, "rte")
    assert len(record.intervals) == len(record.evaluations) == 6
    assert record.changes[1].shape[1] == len(record.report.matrices)


def test_an_unfinished_run_is_running_stopped_or_killed(unfinished):
    (record,), results = load_records([unfinished])
    assert (record.state, record.result, results.rows) == ("stopped", None, ())
    assert record.steps_done == 6
    assert record.steps_planned == 12
    assert record.group == "adalora-ivon-snr-r2"
    lock(unfinished, os.getpid())
    assert load_records([unfinished])[0][0].state == "running"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    lock(unfinished, dead.stdout.strip())
    assert load_records([unfinished])[0][0].state == "killed"
    with subprocess.Popen(["true"]) as zombie:
        lock(unfinished, zombie.pid)
        while load_records([unfinished])[0][0].state == "running":
            sleep(0.01)  # it ends, and nobody has waited for it yet
    (unfinished / ".lock").write_text("process 1 on another-machine since now\n")
    assert load_records([unfinished])[0][0].state == "running"


def test_a_run_that_has_just_begun(unfinished):
    for name in ("metrics.jsonl", "ranks.jsonl", "environment.json", "task.json"):
        (unfinished / name).unlink(missing_ok=True)
    (record,), _ = load_records([unfinished])
    assert (record.log, record.report, record.task, record.steps_done) == ((), None, None, 0)


@pytest.mark.parametrize("name", ["metrics.jsonl", "ranks.jsonl"])
def test_a_line_that_is_being_written_is_left_out(unfinished, name):
    before = load_records([unfinished])[0][0]
    with (unfinished / name).open("a") as file:
        file.write('{"step": 11, "lo')
    after = load_records([unfinished])[0][0]
    assert after.log == before.log
    assert (after.changes[1] == before.changes[1]).all()


def test_runs_that_cannot_be_read_are_left_out_below_a_directory(tmp_path, caplog):
    write_shown(tmp_path, seed=1)
    broken = write_shown(tmp_path, seed=2)
    broken.result.write_text("{")
    assert len(load_records([tmp_path])[0]) == 1
    assert "is left out" in caplog.text
    with pytest.raises(RunDirError):
        load_records([broken.path])
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no run below it"):
        load_records([empty])
