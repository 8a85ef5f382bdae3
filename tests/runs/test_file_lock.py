"""One process at a time in a run directory, whatever happens to the one before."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.runs.file_lock import locked, once

HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from bayeslora_cli.runs.file_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_it(holder, tmp_path):
    path = tmp_path / "run" / ".lock"
    with pytest.raises(RunDirError, match=rf"run is being trained by process {holder.pid} on \S+"):
        locked(path).__enter__()
    assert path.exists(), "it is still the other's"


def test_a_dead_holders_lock_is_taken_over(holder, tmp_path):
    path = tmp_path / "run" / ".lock"
    holder.kill()
    holder.wait()
    assert path.exists()
    with locked(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_is_left(tmp_path):
    with locked(tmp_path / "runs" / "model" / "seed-1" / ".lock"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_has_come_stays(tmp_path):
    (tmp_path / "there").mkdir()
    for place in ("there", "new/er"):
        with locked(tmp_path / place / ".lock"):
            (tmp_path / place / "file").touch()
        assert [p.name for p in (tmp_path / place).iterdir()] == ["file"]
    with locked(tmp_path / "there" / "empty" / ".lock"):
        pass
    assert (tmp_path / "there").is_dir()


def test_an_error_inside_frees_it(tmp_path):
    def fail():
        with locked(tmp_path / ".lock"):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()


def test_a_lock_file_removed_by_its_holder_is_nobodys(tmp_path, monkeypatch):
    """Opened just before the holder removed it: its lock would hold nobody out."""
    path, flock = tmp_path / ".lock", fcntl.flock
    tries = []

    def removed_meanwhile(descriptor, operation):
        if not tries:
            path.unlink()
        if operation != fcntl.LOCK_UN:
            tries.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with locked(path):
        assert path.exists()
        with pytest.raises(RunDirError, match=f"process {os.getpid()}"):
            locked(path).__enter__()
    assert len(tries) == 3


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level("WARNING", "bayeslora"), locked(tmp_path / ".lock"):
        assert "start no second process" in caplog.text


@pytest.mark.parametrize("what", ["a file in the way", "a link"])
def test_where_there_can_be_none(tmp_path, what):
    if what == "a link":
        (tmp_path / "precious").write_text("1")
        (tmp_path / ".lock").symlink_to(tmp_path / "precious")
        path = tmp_path / ".lock"
    else:
        (tmp_path / "runs").touch()
        path = tmp_path / "runs" / "seed-1" / ".lock"
    with pytest.raises(RunDirError, match="--output: cannot write"):
        locked(path).__enter__()
    assert what != "a link" or (tmp_path / "precious").read_text() == "1"


# ---- work that one process does for all

# makes a thing in so many seconds
WORKER = (
    "import logging, sys, time\n"
    "from pathlib import Path\n"
    "from bayeslora_cli.runs.file_lock import once\n"
    "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s')\n"
    "made, seconds, patience = Path(sys.argv[1]), *map(float, sys.argv[2:])\n"
    "with once(made, 'make it', patience) as first:\n"
    "    print(first, flush=True)\n"
    "    time.sleep(seconds)\n"
    "    first and made.touch()\n"
)
# says sooner that it waits
TALKATIVE = WORKER.replace(
    "logging.basic",
    "from bayeslora_cli.runs import file_lock\nfile_lock.SILENCE = 0.3\nlogging.basic",
)


@pytest.fixture
def start():
    """Starts a worker; none is left in the end."""
    started = []

    def found(made, seconds, patience=60, script=WORKER):
        process = subprocess.Popen(
            [sys.executable, "-c", script, made, str(seconds), str(patience)],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        started.append(process)
        return process

    yield found
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def says(process):
    return process.stdout.readline().rstrip("\n")


def test_one_is_first_and_the_others_wait(tmp_path, start):
    made = tmp_path / "new" / "thing"
    workers = [start(made, 0.3) for _ in range(4)]
    assert sorted(says(worker) for worker in workers) == ["False"] * 3 + ["True"]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert [path.name for path in made.parent.iterdir()] == ["thing"]


def test_those_who_have_waited_do_not_wait_for_each_other(tmp_path, start):
    """One that uses what was made, for ever, is in nobody's way."""
    made = tmp_path / "thing"
    first = start(made, 1)
    assert says(first) == "True"
    others = [start(made, 600) for _ in range(3)]
    assert [says(other) for other in others] == ["False"] * 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_those_who_have_waited_in_vain_all_make_it(tmp_path, start, how):
    """At the same time: one after the other would be the slowest."""
    made = tmp_path / "thing"
    first = start(made, 600)
    assert says(first) == "True"
    others = [start(made, 600, script=TALKATIVE) for _ in range(3)]
    assert all(says(other).startswith("waiting for") for other in others)
    first.send_signal(how)
    assert [says(other) for other in others] == ["True"] * 3


def test_a_long_wait_is_said_and_has_an_end(tmp_path, start):
    made = tmp_path / "thing"
    first = start(made, 600)
    assert says(first) == "True"
    first.send_signal(signal.SIGSTOP)
    second = start(made, 0, patience=2, script=TALKATIVE)
    said = says(second)
    assert said.startswith(f"waiting for process {first.pid} on ")
    assert said.endswith(" to make it")
    assert says(second) == "True"


def test_an_error_inside_leaves_nothing(tmp_path):
    made = tmp_path / "thing"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), once(made, "make it", 0.0):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("killed", [False, True])
def test_a_child_that_lives_on_holds_nothing(tmp_path, start, killed):
    """A fork has the descriptor too; the lock ends with the holder all the same."""
    made = tmp_path / "thing"
    forking = "    import os\n    print(os.fork() or time.sleep(600), flush=True)\n"
    first = start(
        made, 600 if killed else 0.5, script=WORKER.replace("    time", forking + "    time")
    )
    assert says(first) == "True"
    child = int(says(first))
    if killed:
        first.kill()
        first.wait()
    second = start(made, 0, patience=600)
    try:
        assert says(second) == str(killed)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("reason", ["no locks", "a file in the way", "what nobody may ask for"])
def test_nobody_waits_where_nothing_can_be_locked(tmp_path, monkeypatch, reason, caplog):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place = tmp_path / "place"
    if reason == "no locks":
        monkeypatch.setattr(fcntl, "flock", none)
    elif reason == "a file in the way":
        place.touch()
    made = place / ("x" * 300 if reason == "what nobody may ask for" else "thing")
    with once(made, "make it", 60) as first, once(made, "make it", 60) as second:
        assert first
        assert second
    assert not caplog.text
    assert not place.is_dir() or not list(place.iterdir())
