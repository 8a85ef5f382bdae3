"""Checkpoints of unknown origin, whose checksums are right: one message, and nothing is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.training.step import TrainStep
from tests.conftest import Killed
from tests.training.test_loop import run_of

OPTIONS = {"max_steps": 6, "checkpoint_every": "2", "max_length": 16}


@pytest.fixture(scope="module")
def begun(backbone, rte, tmp_path_factory):
    """The output directory of a run that was killed after a state was saved."""
    output = tmp_path_factory.mktemp("begun")
    original = TrainStep.__call__

    def killed(self, at, micro_batches):
        if at == 3:
            raise Killed
        original(self, at, micro_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        with pytest.raises(Killed):
            run_of(backbone, rte, output, **OPTIONS)
    return output


@pytest.fixture
def unfinished(begun, backbone, rte, tmp_path):
    """The only state of an unfinished run, and a call that resumes it."""
    shutil.copytree(begun, tmp_path / "runs")
    (state,) = tmp_path.glob("runs/*/*/seed-*/checkpoint/step-*")
    return state, lambda: run_of(backbone, rte, tmp_path / "runs", **OPTIONS)


def seal(state: Path) -> None:
    """Write `complete` anew, as whoever forges the other files would."""
    files = {p.name: p.read_bytes() for p in state.iterdir() if p.name != "complete"}
    written = {n: {"bytes": len(b), "sha256": sha256(b).hexdigest()} for n, b in files.items()}
    (state / "complete").write_text(json.dumps(written))


def edit_scalars(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(state: Path) -> None:
        scalars = json.loads((state / "state.json").read_text())
        change(scalars)
        (state / "state.json").write_text(json.dumps(scalars))

    return edit


def edit_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(state: Path) -> None:
        tensors = load_file(state / "state.safetensors")
        change(tensors)
        save_file(tensors, state / "state.safetensors")

    return edit


def put(part: str, name: str, value: object) -> Callable[[Path], None]:
    return edit_scalars(lambda scalars: scalars[part].update({name: value}))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (edit_tensors(lambda t: t.update({"bank/mean": t["bank/mean"][1:]})), "bank/mean"),
        (edit_tensors(lambda t: t.update({"bank/mask": t["bank/mask"].double()})), "bank/mask"),
        (edit_tensors(lambda t: t.pop("best/scores")), "best/scores"),
        (edit_scalars(lambda s: s.pop("generators")), "it has no generators"),
        (edit_scalars(lambda s: s.update(loop=[1])), "loop: its state is .*, not dict"),
        (edit_scalars(lambda s: s["loop"].pop("step")), "loop: 'step'"),
        (put("loop", "step", "4"), "loop: step is '4', not int"),
        (put("loop", "step", -1), "loop: step is -1"),
        (put("loop", "step", 10**12), "of another run: step 1000000000000, and the run has 6"),
        (put("loop", "train_seconds", None), "loop: train_seconds is None, not float"),
        (put("loop", "__class__", "os"), "loop: "),
        (put("step", "count", []), r"step: count is \[\], not int"),
        (put("generators", "cpu", "00" * 7), "generators: "),
        (put("generators", "noise", "no hexadecimal digits"), "generators: "),
        (put("best", "best", "x"), "best: best: has no value"),
        (put("best", "last", {"metrics": {}, "value": 0.5, "epoch": 1}), "best: last: "),
    ],
)
def test_they_are_refused(unfinished, forge, message):
    state, resume = unfinished
    forge(state)
    seal(state)
    with pytest.raises(RunDirError, match=message):
        resume()
    assert not (state.parents[1] / "result.json").exists()


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_no_pickle_is_opened(unfinished, dump, name, tmp_path, caplog):
    """It is damage like any other: the run starts again, and says so."""
    state, resume = unfinished
    with (state / name).open("wb") as file:
        dump(Trap(tmp_path / "sprung"), file)
    seal(state)
    assert resume().finished
    assert "is skipped, it is damaged" in caplog.text
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("text", ["[]", "null", '{"a":' * 100_000, '{"state.json": 1}', "\x00"])
@pytest.mark.parametrize("name", ["complete", "state.json"])
def test_json_of_other_kinds(unfinished, name, text, caplog):
    state, resume = unfinished
    (state / name).write_text(text)
    if name == "state.json":
        seal(state)
    if (name, text) == ("state.json", '{"state.json": 1}'):
        with pytest.raises(RunDirError, match="it has no inputs"):
            resume()
        return
    assert resume().finished
    assert "is skipped, it is damaged" in caplog.text
