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

from bayeslora_cli import lock
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.lock import locked, once

HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from bayeslora_cli.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
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

    monkeypatch.setattr(lock.fcntl, "flock", removed_meanwhile)
    with locked(path):
        assert path.exists()
        with pytest.raises(RunDirError, match=f"process {os.getpid()}"):
            locked(path).__enter__()
    assert len(tries) == 3


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", none)
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

WORKER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from bayeslora_cli.lock import once\n"
    "made = Path(sys.argv[1])\n"
    "with once(made) as first:\n"
    "    print(first, flush=True)\n"
    "    time.sleep(float(sys.argv[2]))\n"
    "    first and made.touch()\n"
)


def worker(made, seconds, script=WORKER):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(made), str(seconds)], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip


def test_one_is_first_and_the_others_wait(tmp_path):
    made = tmp_path / "new" / "thing"
    workers = [worker(made, 0.3) for _ in range(4)]
    said = [process.communicate()[0] for process in workers]
    assert sorted(said) == [b"False\n"] * 3 + [b"True\n"]
    assert [path.name for path in made.parent.iterdir()] == ["thing"]


def test_those_who_have_waited_do_not_wait_for_each_other(tmp_path):
    """One that uses what was made, for ever, is in nobody's way."""
    made = tmp_path / "thing"
    first = worker(made, 1)
    assert first.stdout.readline() == b"True\n"
    others = [worker(made, 600) for _ in range(3)]
    try:
        assert [other.stdout.readline() for other in others] == [b"False\n"] * 3
    finally:
        for process in (first, *others):
            process.kill()
            process.communicate()


def test_one_that_dies_or_fails_is_followed_by_another(tmp_path):
    made = tmp_path / "thing"
    dead = worker(made, 600)
    assert dead.stdout.readline() == b"True\n"
    dead.kill()
    dead.communicate()
    with pytest.raises(KeyboardInterrupt), once(made):
        raise KeyboardInterrupt
    with once(made) as first:
        assert first
    assert not list(tmp_path.iterdir())


def test_a_child_that_lives_on_holds_nothing(tmp_path):
    """A fork has the descriptor too, and the lock belongs to both."""
    made = tmp_path / "thing"
    forking = "    import os\n    print(os.fork() or time.sleep(600), flush=True)\n"
    first = worker(made, 0.5, WORKER.replace("    time", forking + "    time"))
    assert first.stdout.readline() == b"True\n"
    child = int(first.stdout.readline())
    second = worker(made, 0)
    try:
        assert second.stdout.readline() == b"False\n"
    finally:
        os.kill(child, signal.SIGKILL)
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("reason", ["no locks", "a file in the way"])
def test_nobody_waits_where_nothing_can_be_locked(tmp_path, monkeypatch, reason, caplog):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place = tmp_path / "place"
    if reason == "no locks":
        monkeypatch.setattr(lock.fcntl, "flock", none)
    else:
        place.touch()
    with once(place / "thing") as first, once(place / "thing") as f:
        assert first
        assert f
    assert not caplog.text
