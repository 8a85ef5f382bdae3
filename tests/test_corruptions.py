"""Random damage to any file of a finished or unfinished run: told, or without any effect.

`pytest -m slow tests/test_corruptions.py -s` does it 256 times and prints the figures.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter

import pytest

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.evaluation.run_evaluation import evaluate_run
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.training.step import TrainStep
from tests.conftest import Killed
from tests.support.faults import contents
from tests.training.test_loop import run_of

OPTIONS = {"max_steps": 6, "checkpoint_every": "2", "max_length": 16, "log_every": 1}
UNREAD = ("README.md", "metrics.jsonl", "ranks.jsonl", ".lock")
"""Files of a finished run that only people read, and a checkpoint's logs."""


@pytest.fixture(scope="module")
def runs(backbone, rte, tmp_path_factory):
    """The output directories of a finished run and of one that was killed."""
    root = tmp_path_factory.mktemp("runs")
    run_of(backbone, rte, root / "finished", **OPTIONS)
    original = TrainStep.__call__

    def killed(self, at, micro_batches):
        if at == 5:
            raise Killed
        original(self, at, micro_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            run_of(backbone, rte, root / "unfinished", **OPTIONS)
    return root


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit, cut the end off, or overwrite, repeat or drop some bytes."""
    changed, at = bytearray(content), draw.randrange(max(1, len(content)))
    kind = draw.randrange(5)
    if kind == 0 or not content:
        changed[at : at + 1] = bytes([(content[at] if content else 0) ^ (1 << draw.randrange(8))])
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    elif kind == 3:
        changed[at:at] = changed[at : at + 16]
    else:
        del changed[at : at + 8]
    return bytes(changed)


def harm(runs, state: str, draw: random.Random, place):
    """Copy a run and damage one of its files; return the run and the file's name."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(runs / state, place)
    (run,) = place.glob("*/*/seed-*")
    file = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    before = file.read_bytes()
    while (after := damaged(before, draw)) == before:
        pass
    file.write_bytes(after)
    return run, file.relative_to(run).as_posix()


def outcome(work) -> object:
    """What some work gives; "told": one of our errors."""
    try:
        return work()
    except BayesloraError:
        return "told"


def figures(runs, backbone, rte, place, times: int, seed: int) -> Counter[tuple[str, str]]:
    """Damage runs so many times, half of them finished; count what came of it."""
    draw, found = random.Random(seed), Counter()
    (whole,) = (runs / "finished").glob("*/*/seed-*")
    metrics, expected = evaluate_run(whole, device="cpu").facts["metrics"], contents(whole)
    for number in range(times):
        state = ("finished", "unfinished")[number % 2]
        run, name = harm(runs, state, draw, place)
        if state == "finished":
            told = outcome(RunDir(run).verify) == "told"
            said = outcome(lambda run=run: evaluate_run(run, device="cpu").facts["metrics"])
            right = said in ("told", metrics)
            # what an evaluation does not read, a look at all the files finds
            right &= told or name.rpartition("/")[2] in UNREAD or name.startswith("checkpoint/")
            kind = "refused" if said == "told" else "found by a look at all files"
            kind = kind if told or said == "told" else "not read"
        else:
            said = outcome(lambda: contents(run_of(backbone, rte, place, **OPTIONS).path))
            right = said in ("told", expected)
            kind = "refused" if said == "told" else "resumed to the same bytes"
        assert right, f"{state}: {name} was damaged, and nothing was told"
        found[state, kind] += 1
    return found


def test_some_corruptions(runs, backbone, rte, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "bayeslora")
    figures(runs, backbone, rte, tmp_path / "run", 10, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_corruptions(runs, backbone, rte, tmp_path, capsys):
    found = figures(runs, backbone, rte, tmp_path / "run", 256, 0)
    with capsys.disabled():
        print(f"\n256 corruptions, none silently wrong: {dict(found)}")
