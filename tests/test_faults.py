"""Whole trainings killed, stopped and failed at every point: nothing is lost, and nothing is torn.

`pytest -m slow tests/test_faults.py -s` takes all the points and prints the figures.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import time
from collections import Counter

import pytest

from tests.conftest import save_backbone, write_rte
from tests.support.faults import Server, contents, differences
from tests.support.warm_process import ROOT

OPTIONS = (
    "--task rte --max-steps 13 --batch-size 16 --log-every 3 --max-length 16 --device cpu "
    "--eval-every 5 --checkpoint-every 2"
)
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
REFUSALS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)


@pytest.fixture(scope="module")
def server(warm_process, tmp_path_factory):
    """Trainings with one set of options, and one of them without faults: `whole`."""
    directory = tmp_path_factory.mktemp("faults")
    save_backbone(directory / "tiny-bert", "bert", dropout=0.1)
    write_rte(directory / "glue")
    found = Server(
        warm_process,
        directory,
        [
            *OPTIONS.split(),
            "--data",
            str(directory / "glue"),
            "--model",
            str(directory / "tiny-bert"),
        ],
    )
    done = found.train("whole")
    assert done.code == 0, done.text
    found.whole = contents(found.run("whole"))
    found.points = found.calls("whole")
    return found


def spread(points, count):
    """Numbers of so many of the points, evenly; always the same."""
    return [round((i + 0.5) * len(points) / count) for i in range(count)]


def finish(server, name):
    """The same command again, as often as it takes, must give what an unharmed run gives."""
    done = server.train(name)
    assert done.code == 0, done.text
    assert differences(server.run(name), server.whole) == [], name
    server.forget(name)
    return done


def test_the_points_are_all_kinds(server):
    """What the tests below rest on: faults come in steps, evaluations, and writes of every file."""
    kinds = {point.split()[0] for point in server.points}
    assert kinds == {
        "step", "evaluation", "open", "save", "mkdir", "rename", "unlink", "rmdir", "fsync",
        "ftruncate",
    }  # fmt: skip
    for name in ("config", "metrics", "ranks.jsonl", "result", "adapter", "posterior", "step-0"):
        assert any(name in point for point in server.points), name


# ---- killed


def kill_at(server, at):
    name = f"kill-{at}"
    harmed = server.train(name, fault="kill", at=at)
    assert harmed.code == -9
    finish(server, name)


def test_killed_at_any_call(server):
    for at in spread(server.points, 8):
        kill_at(server, at)


def test_killed_again_and_again(server):
    """Each time somewhere else, until there is nothing left to kill."""
    for at in (9, 120, 60, 150, 90, 45):
        assert server.train("again", fault="kill", at=at).code in (-9, 0)
    finish(server, "again")


def test_a_finished_run_says_so(server):
    before = contents(server.run("whole"))
    again = server.train("whole")
    assert again.code == 0
    assert "already trained" in again.text
    assert contents(server.run("whole")) == before


def test_the_same_configuration_wherever_it_was_typed(server):
    """Typed relative or absolute, before or after its directory is made, even by a kill."""
    place = server.directory / "same" / "out"
    typed = {"relative": os.path.relpath(place, ROOT), "absolute": str(place)}
    found, last = set(), set()
    at = next(i for i, point in enumerate(server.points, 1) if "config.toml" in point)
    for output, *before in itertools.product(typed.values(), ("", "kill", "mkdir")):
        if before == ["kill"]:
            assert server.train("same", "--output", output, fault="kill", at=at).code == -9
            assert not list(place.rglob("config.toml"))
        elif before == ["mkdir"]:
            place.mkdir(parents=True)
        done = server.train("same", "--output", output)
        assert done.code == 0, done.text
        found.add((server.run("same") / "config.toml").read_bytes())
        last.add(done.text.splitlines()[-1])
        server.forget("same")
    assert len(found) == 1
    assert last == {str(place / server.run("whole").relative_to(server.directory / "whole/out"))}


def kill_after(server, number, seconds):
    name = f"clock-{number}"
    harmed = server.train(name, after=seconds)
    assert harmed.code in (-9, 0)
    finish(server, name)
    return harmed.code


def test_killed_by_the_clock(server):
    for number, seconds in enumerate((0.15, 0.4)):
        kill_after(server, number, seconds)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_call_and_a_hundred_times_by_the_clock(server, capsys):
    start = time.perf_counter()
    for at in range(1, len(server.points) + 1):
        kill_at(server, at)
    random.seed(0)
    whole = server.train("clock").seconds
    codes = [kill_after(server, i, random.uniform(0, 1.2 * whole)) for i in range(100)]
    with capsys.disabled():
        print(
            f"\nkilled at each of {len(server.points)} calls and {Counter(codes)[-9]} times by the "
            f"clock: all resumed, 0 bytes differ ({time.perf_counter() - start:.0f} s)"
        )


# ---- refused


def refuse_at(server, at, number):
    name = f"refused-{at}-{number}"
    harmed = server.train(name, fault=number, at=at)
    if harmed.code:  # else it was a call whose success nobody needs: the lock's removal
        assert harmed.code in (1, 2)
        last = harmed.text.splitlines()[-1]
        assert last.startswith("error: "), harmed.text
        assert "cannot write /" in last
        assert "Traceback" not in harmed.text
    finish(server, name)
    return harmed.code


def writes(server):
    """Points that change files, as a run counts them where errors are injected."""
    return [p for p in server.points if p.split()[0] not in ("step", "evaluation")]


def test_an_error_at_any_write(server):
    points = writes(server)
    for index, at in enumerate(spread(points, 6)):
        refuse_at(server, at, REFUSALS[index % len(REFUSALS)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_error_at_every_write(server, capsys):
    points = writes(server)
    codes = Counter(
        refuse_at(server, at, REFUSALS[at % len(REFUSALS)]) for at in range(1, len(points) + 1)
    )
    assert codes[0] < 6
    with capsys.disabled():
        print(f"\n{len(points)} writes refused in turn: exit codes {dict(codes)}, 0 bytes differ")


# ---- stopped


def stop_at(server, at, signal):
    name = f"stop-{at}-{signal}"
    harmed = server.train(name, fault=signal, at=at)
    if harmed.code == 0:  # it came when all was done
        assert "tiny-bert" in harmed.text.splitlines()[-1]
    else:
        assert harmed.code == 75, harmed.text
        last = harmed.text.splitlines()[-1]
        assert last.startswith(f"stopped by {signal}")
        assert "the same command again" in last
        assert "Traceback" not in harmed.text
    for directory in (server.directory / name).glob("out/*/*/seed-*"):
        left = {path.name for path in directory.rglob(".*")}
        # what it was about to remove or to rename when it was told to stop
        assert len(left) <= 1, left
    finish(server, name)
    return harmed.code


def test_stopped_at_any_call(server):
    for index, at in enumerate(spread(server.points, 6)):
        stop_at(server, at, SIGNALS[index % 3])


def test_stopped_in_an_evaluation(server):
    """A checkpoint of the state before it, and the evaluation is done again."""
    at = [i for i, point in enumerate(server.points, 1) if point.startswith("evaluation")][1]
    harmed = server.train("evaluating", fault="SIGUSR1", at=at)
    assert harmed.code == 75
    assert "checkpoint at step " in harmed.text
    resumed = finish(server, "evaluating")
    assert "resuming after step " in resumed.text


def test_stopped_while_loading(server):
    harmed = server.train("loading", after=0.05, signal="SIGTERM")
    assert harmed.code in (75, -15)  # -15: before the command line could listen
    finish(server, "loading")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stopped_at_every_call(server, capsys):
    codes = Counter(stop_at(server, at, SIGNALS[at % 3]) for at in range(1, len(server.points) + 1))
    with capsys.disabled():
        print(f"\n{len(server.points)} signals: exit codes {dict(codes)}, 0 bytes differ")


# ---- damaged

FILES = (
    "config.toml", "task.json", "environment.json", "metrics.jsonl", "ranks.jsonl", ".lock",
    "checkpoint/step-000010/state.safetensors", "checkpoint/step-000010/state.json",
    "checkpoint/step-000010/complete", "checkpoint/step-000010/metrics.jsonl",
)  # fmt: skip


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    changed = bytearray(data)
    changed[len(data) // 3] ^= 0x80
    return bytes(changed)


@pytest.fixture(scope="module")
def killed(server):
    """A run killed after some checkpoints."""
    at = [i for i, point in enumerate(server.points, 1) if point.startswith("step")][10]
    assert server.train("killed", fault="kill", at=at).code == -9
    assert {p.name for p in server.run("killed").glob("checkpoint/*")} == {
        "step-000008", "step-000010",
    }  # fmt: skip
    return server.directory / "killed"


@pytest.mark.parametrize(
    ("name", "damage"), list(zip(FILES, itertools.cycle((cut, flip)), strict=False))
)
def test_damaged_files(name, damage, server, killed):
    """The unharmed run's result; or, where it cannot be known what was meant, a clear refusal."""
    shutil.copytree(killed, server.directory / "damaged")
    path = server.run("damaged") / name
    path.write_bytes(damage(path.read_bytes()))
    done = server.train("damaged")
    if name in ("config.toml", "task.json"):  # what was meant cannot be known
        assert done.code == 2, done.text
        assert "Traceback" not in done.text
        assert path.name in done.text or "with other settings" in done.text
        shutil.copy(killed / path.relative_to(server.directory / "damaged"), path)
        done = server.train("damaged")
    assert done.code == 0, done.text
    assert ("damaged: " in done.text) == ("step-000010" in name)
    assert differences(server.run("damaged"), server.whole) == []
    server.forget("damaged")


def test_no_token_is_written_or_printed(server):
    """The trainings have one in their environment, as a user's have."""
    for path in [*server.run("whole").rglob("*"), server.directory / "whole" / "log"]:
        if path.is_file():
            assert server.token.encode() not in path.read_bytes(), path


# ---- two at once


def test_the_second_process_is_refused(server):
    """It says who is there, leaves alone what it finds, and exits with 2."""
    from bayeslora_cli.runs.file_lock import locked

    shutil.copytree(server.directory / "whole", server.directory / "two")
    run = server.run("two")
    (run / "result.json").unlink()
    before = contents(run)
    with locked(run / ".lock"):
        second = server.train("two")
        assert second.code == 2
        assert "is being trained by process " in second.text
        assert contents(run) == before
    finish(server, "two")
