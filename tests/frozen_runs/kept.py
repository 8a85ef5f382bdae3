"""What the frozen runs' directory holds, how it is put in place, and what is compared.

The command line and the files are all that is used here: modules may move.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import os
import re
import runpy
import shutil
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from . import cases

DATA = Path(__file__).parent / "data"
INPUTS = DATA / "inputs"
ROOT = "@ROOT@"
"""Stands in the kept files for the directory that the inputs and the runs are in."""
TEXTS = (".json", ".jsonl", ".md", ".toml")
TOLERANCE = 1e-5  # relative, and absolute for numbers below 1
# AdamW divides a gradient by its own size, also one that is nothing but rounding (a key's bias,
# a gate between two pulls), which another processor rounds otherwise
STRAY, STRAYS = 0.02, 64  # by so much at most, one element in so many
VOLATILE = {
    # times, memory, machines and versions, the hashes of files that have them or are not exact
    "seconds", "train_seconds", "evaluation_seconds", "checkpoint_seconds", "interval_seconds",
    "interval_tokens", "steps_per_second", "tokens_per_second", "peak_memory_bytes",
    "memory_bytes", "created", "versions", "files", "transformers_version", "peft_version",
}  # fmt: skip


# ---- the command line


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


def bayeslora(*arguments: object) -> Said:
    """`python -m bayeslora_cli`, in this process: to import all of it takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["bayeslora", *map(str, arguments)]
    code: object = None
    gc.collect()
    gc.freeze()  # or the collections between a sweep's runs go through all that torch has made
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_module("bayeslora_cli", run_name="__main__")
    except SystemExit as done:
        code = done.code
    finally:
        sys.argv = before
    return Said(code if isinstance(code, int) else int(bool(code)), out.getvalue(), err.getvalue())


# ---- what is in the repository, put where it can be run


def put_inputs(root: Path) -> Path:
    """Backbones and data, as `root`."""
    return shutil.copytree(INPUTS, root, dirs_exist_ok=True)


def options(name: str, root: Path) -> list[str]:
    """Those that the run `name` was trained with, but for --output."""
    return [*cases.COMMON.split(), *cases.RUNS[name].format(root=root).split()]


def directory(name: str, root: Path) -> Path:
    """Where this build would train the run `name`: paths are part of the hash."""
    said = bayeslora(
        "train", *options(name, root), "--output", root / "runs", "--dry-run", "--json"
    )
    assert said.code == 0, said.err
    return Path(json.loads(said.out)["run"])


def put_run(name: str, state: str, root: Path) -> Path:
    """The run `name`, finished or unfinished, in its place below `root`."""
    run = directory(name, root)
    for path in (DATA / name / state).rglob("*"):
        target = run / path.relative_to(DATA / name / state)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if path.suffix in TEXTS and ROOT in (text := path.read_text(encoding="utf-8")):
                target.write_text(text.replace(ROOT, str(root)), encoding="utf-8")
    return run


def keep_run(run: Path, root: Path, kept: Path) -> None:
    """The other way round: a run into the repository, without what tells of this machine."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run, kept, ignore=shutil.ignore_patterns(".lock"))
    for path in kept.rglob("*"):
        if path.suffix not in TEXTS:
            continue
        text = path.read_text(encoding="utf-8")
        stripped = re.sub(r'("platform": )".*"', r'\1"Linux"', text.replace(str(root), ROOT))
        if text != stripped:
            assert "checkpoint" not in path.parts, "checkpoints are held by their hashes"
            path.write_text(stripped, encoding="utf-8")


# ---- in a form that can be compared


def plain(value: Any, names: dict[str, str]) -> Any:
    """A JSON value without what may change; the keys stay.

    Args:
        names: text -> what is put for it.
    """
    if isinstance(value, dict):
        return {k: None if k in VOLATILE else plain(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(item, names) for item in value]
    if isinstance(value, str):
        for name, stand_in in names.items():
            value = value.replace(name, stand_in)
    return value


def names_of(root: Path, runs: list[Path]) -> dict[str, str]:
    """The paths in what is said, and the directories' hashes, which come of paths."""
    hashes = (run.parent.name.rpartition("-")[2] for run in runs)
    return {str(root): ROOT} | dict.fromkeys(hashes, "HASH")


def rows(text: str, names: dict[str, str]) -> list[list[Any]]:
    """A csv's cells; reals as such, masks (now in brackets) and counts as text."""
    text = re.sub(r"\[([01|]+)\]", r"\1", text)
    return [
        [float(c) if re.fullmatch(r"-?\d+\.\d+(e[+-]\d+)?|\d+e[+-]\d+", c) else c for c in row]
        for row in plain(list(csv.reader(io.StringIO(text))), names)
    ]


def answer(said: Said, names: dict[str, str]) -> dict[str, Any]:
    """What a command printed: a JSON value, or a csv. Messages may be put in other words."""
    found: dict[str, Any] = {"code": said.code}
    if said.out[:1] in ("{", "["):
        found["json"] = plain(json.loads(said.out), names)
    elif said.out:
        found["csv"] = rows(said.out, names)
    return found


def whole(path: Path) -> dict[str, Any]:
    """A safetensors file: each tensor, and the metadata."""
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return {"metadata": file.metadata(), **tensors}


def summary(path: Path) -> dict[str, Any]:
    """The same: of each tensor type, shape and three numbers that nearly any change changes."""
    found = whole(path)
    for name, tensor in found.items():
        if name != "metadata":
            flat = tensor.astype(np.float64).ravel()
            by_place = flat @ np.linspace(-1, 1, flat.size)
            numbers = (flat.sum(), np.linalg.norm(flat), by_place)
            found[name] = [str(tensor.dtype), list(tensor.shape), *(float(n) for n in numbers)]
    return found


def contents(
    path: Path, names: dict[str, str], read: Any = whole, only_keys: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All files of a directory by name, as far as builds have to agree on them.

    Args:
        read: of safetensors files.
        only_keys: JSON files whose values are left out.
    """
    found: dict[str, Any] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if file.suffix == ".safetensors":
            found[name] = read(file)
        elif file.name in (*only_keys, "complete"):
            found[name] = keys(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".json":
            found[name] = plain(json.loads(file.read_text(encoding="utf-8")), names)
        elif file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            found[name] = [plain(json.loads(line), names) for line in lines]
        elif file.suffix == ".toml":
            found[name] = plain(tomllib.loads(file.read_text(encoding="utf-8")), names)
        else:  # model cards, ONNX
            found[name] = None
    found.pop(".lock", None)
    return found


def keys(value: Any, above: str = "") -> list[str]:
    """Paths of all keys."""
    if isinstance(value, dict):
        return sorted(
            p for k, v in value.items() for p in [f"{above}/{k}", *keys(v, f"{above}/{k}")]
        )
    return []


LATER_KEYS = {
    "data_sha256", "task_type", "--task-type", "truncated", "patterns", "precision", "largest_rank",
    "mae", "rmse", "details", "waited", "target_rank", "by",
}  # fmt: skip
"""Keys that later builds have added to what version 0.1.0 said or wrote."""

LATER_WORDS = "; --preset learned-posterior has settings with which it learns"
"""The end of a note that later builds have added."""

LATER_VALUES = {
    ("gradient_checkpointing", "False"): "off",
    ("gradient_checkpointing", "<bool>"): "<str>",
}
"""Values of an option, and its type in the help, that later builds write by another name."""


def differences(found: Any, expected: Any, at: str = "") -> list[str]:
    """Where two values differ: names and whole numbers exactly, reals by more than `TOLERANCE`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key in sorted(found.keys() - LATER_KEYS | expected.keys())
            for line in (
                differences(found[key], expected[key], f"{at}/{key}")
                if key in found and key in expected
                else [f"{at}/{key}: {'new' if key in found else 'missing'}"]
            )
        ]
    if isinstance(found, str) and _is_named_later(found, expected, at):
        return []
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        if found.shape == expected.shape and found.dtype == expected.dtype:
            close = np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
            far = ~close
            if found.dtype.kind == "f" and far.sum() <= found.size // STRAYS:
                far = ~(np.abs(found - expected) <= STRAY)  # NaN is far
            return [f"{at}: {(~close).sum()} of {close.size} differ"] if far.any() else []
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{at}/{i}")]
    elif isinstance(expected, float) and type(found) in (int, float):
        if math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            return []
    elif isinstance(found, str) and isinstance(expected, str):
        if found.removesuffix(LATER_WORDS) == expected:
            return []
    elif type(found) is type(expected) and found == expected:
        return []
    return [f"{at}: {found!r}, not {expected!r}"]


def _is_named_later(found: str, expected: Any, at: str) -> bool:
    options = (part.removeprefix("--").replace("-", "_") for part in at.split("/"))
    return found in [LATER_VALUES.get((option, str(expected))) for option in options]


# ---- what a build says


def ask(name: str, run: Path, root: Path, question: str) -> dict[str, Any]:
    """The answer to one of `QUESTIONS` about a finished run; with --predictions those as well."""
    command = cases.QUESTIONS[question].format(
        root=root, run=run, name=name, options=" ".join(options(name, root))
    )
    names = names_of(root, [run, directory(name, root)])
    found = answer(bayeslora(*command.split()), names)
    predictions = root / f"{name}.csv"
    if predictions.exists():
        found["predictions"] = rows(predictions.read_text(encoding="utf-8"), names)
        predictions.unlink()
    return found


def export(name: str, run: Path, root: Path, form: str) -> dict[str, Any]:
    """The manifest of an export and its files, which tensors they have and how large those are."""
    output = root / "exports" / name / form.replace(" ", "")
    said = bayeslora(
        "export", run, "--json", "--device", "cpu", "--output", output, "--format", *form.split()
    )
    names = names_of(root, [run])
    return {**answer(said, names), "files": contents(output, names, summary)}


def together(root: Path, runs: list[Path], question: str) -> dict[str, Any]:
    """The answer to one of the questions about all runs."""
    command = cases.TOGETHER[question].format(root=root)
    return answer(bayeslora(*command.split()), names_of(root, runs))


def resume(name: str, root: Path) -> tuple[Said, dict[str, Any]]:
    """An unfinished run goes on to its end: what was said, and what its directory holds."""
    run = put_run(name, "unfinished", root)
    said = bayeslora("train", *options(name, root), "--output", root / "runs", "--json")
    saved = max((DATA / name / "unfinished" / "checkpoint").glob("step-*")) / "metrics.jsonl"
    begun, ended = (p.read_text(encoding="utf-8") for p in (saved, run / "metrics.jsonl"))
    assert begun, "the state was saved before anything was logged"
    assert ended.startswith(begun), "it began anew: these times are another process's"
    found = finished_contents(run, root)
    found["environment.json"].remove("/resumed")  # all else is as in a run that was never stopped
    return said, found


# what later versions write besides
ADDED_FILES = ("checksums.json",)
ADDED_KEYS = {"environment.json": ("/checksums", "/identity")}


def finished_contents(run: Path, root: Path | str) -> dict[str, Any]:
    """What is compared of a finished run."""
    found = contents(run, {str(root): ROOT}, only_keys=("environment.json",))
    for name in ADDED_FILES:
        found.pop(name, None)
    for name, state in found.items():
        if name.endswith("/state.json"):  # a checksum of all bytes stands behind that of samples
            weights = state["inputs"]["the backbone's weights have"]
            state["inputs"]["the backbone's weights have"] = weights.split()[0]
    for name, added in ADDED_KEYS.items():
        found[name] = [key for key in found[name] if not key.startswith(added)]
    del found["config.toml"]["output"]
    return found


def planned(root: Path, given: str) -> list[str]:
    """Directories of the runs that a set of options means, relative to the current one."""
    said = bayeslora("train", *cases.NOWHERE.split(), *given.format(root=root).split())
    assert said.code, "there is a model of that name"
    return sorted(os.path.relpath(entry["run"]) for entry in json.loads(said.out))


def printed_commands(given: str) -> list[str]:
    """What `--print-commands` prints."""
    return bayeslora("train", *given.split(), "--print-commands").out.splitlines()


def flags(command: str) -> dict[str, str]:
    """The options that a command's help lists, and the kinds of their values."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "300"  # a line an option
    try:
        said = bayeslora(*command.split(), "--help-all")
        if said.code:  # a build whose help shows all
            said = bayeslora(*command.split(), "--help")
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    found = re.findall(r"(?m)^│ +(?:\* +)?(--[\w-]+)(?: +-\w)? +(<[^>]+>|\S+)", said.out)
    assert found, said.out
    return {name: kind(shown) for name, shown in found}


# of a value, as typer before 0.20 shows it
KINDS = {"TEXT": "<str>", "INTEGER": "<int>", "FLOAT": "<float>", "PATH": "<path>"}


def kind(shown: str) -> str:
    """How a value is called in the help; before typer 0.20 a switch's help follows it at once."""
    known = KINDS.get(shown, shown).replace("<int range>", "<int>")
    return known if known.startswith("<") or known.isupper() else "<bool>"


def presets() -> list[str]:
    """Names of the built-in presets."""
    return [line.split()[0] for line in bayeslora("train", "--list-presets").out.splitlines()]


def exit_code(root: Path, run: Path, unfinished: Path, command: str) -> int:
    """How a command ends that something may be wrong with; never in a traceback."""
    said = bayeslora(*command.format(root=root, run=run, unfinished=unfinished).split())
    assert "Traceback" not in said.err, said.err
    return said.code
