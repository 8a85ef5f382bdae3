"""Runs that version 0.1.0 trained are read, evaluated, exported and resumed as it would itself.

`frozen_runs/make.py` made them. Only the command line and files are used: modules may move.
"""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from peft import AdaLoraConfig, LoraConfig

from .frozen_runs import cases, kept

SAID = json.loads((kept.DATA / "said.json").read_text(encoding="utf-8"))
SAID_OF = {
    name: json.loads((kept.DATA / name / "said.json").read_text(encoding="utf-8"))
    for name in cases.RUNS
}
FIRST = next(iter(cases.RUNS))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Backbones and data in a directory of this machine."""
    return kept.put_inputs(tmp_path_factory.mktemp("frozen").resolve())


@pytest.fixture(scope="module")
def finished(root):
    """The finished runs, by name."""
    return {name: kept.put_run(name, "finished", root) for name in cases.RUNS}


def but_new_options(differences):
    """Differences without the options that configurations have gained since."""
    return [d for d in differences if not re.search(r"/config(\.toml)?/[a-z_-]+: new$", d)]


def but_peft_options(differences):
    """Differences without the options that an older PEFT does not know."""
    known = {f.name for kind in (AdaLoraConfig, LoraConfig) for f in dataclasses.fields(kind)}
    missing = re.compile(r"/adapter_config\.json/(\w+): missing$")
    found = ((d, missing.search(d)) for d in differences)
    return [d for d, option in found if option is None or option[1] in known]


@pytest.mark.parametrize("name", cases.RUNS)
def test_what_is_said_of_a_finished_run(name, finished, root):
    found = {q: kept.ask(name, finished[name], root, q) for q in cases.QUESTIONS}
    assert but_new_options(kept.differences(found, SAID_OF[name]["answers"])) == []


@pytest.mark.parametrize("name", cases.RUNS)
def test_exports_of_a_finished_run(name, finished, root):
    found = {f: kept.export(name, finished[name], root, f) for f in cases.exports(name)}
    differences = but_new_options(kept.differences(found, SAID_OF[name]["exports"]))
    assert but_peft_options(differences) == []


@pytest.mark.parametrize("name", cases.RUNS)
def test_an_unfinished_run_ends_as_if_it_had_never_stopped(name, tmp_path):
    root = kept.put_inputs(tmp_path.resolve())
    said, found = kept.resume(name, root)
    assert said.code == 0, said.err
    expected = kept.finished_contents(kept.DATA / name / "finished", kept.ROOT)
    assert but_peft_options(kept.differences(found, expected)) == []


@pytest.mark.parametrize("question", cases.TOGETHER)
def test_what_is_said_of_all_runs_together(question, finished, root):
    found = kept.together(root, list(finished.values()), question)
    assert kept.differences(found, SAID["together"][question]) == []


def test_directories_of_runs(root):
    """Their hashes decide whether a run is found again."""
    found = {given: kept.planned(root, given) for given in cases.DIRECTORIES}
    assert kept.differences(found, SAID["directories"]) == []


def test_printed_commands():
    found = {given: kept.printed_commands(given) for given in cases.COMMANDS}
    assert kept.differences(found, SAID["commands"]) == []


def test_flags_and_presets():
    found = {command: kept.flags(command) for command in SAID["flags"]}
    said = {c: {n: kept.kind(k) for n, k in flags.items()} for c, flags in SAID["flags"].items()}
    lost = [d for d in kept.differences(found, said) if not d.endswith(": new")]
    assert lost == []
    assert set(kept.presets()) >= set(SAID["presets"]["names"])


def test_exit_codes(finished, root, tmp_path):
    left = kept.put_run(FIRST, "unfinished", kept.put_inputs(tmp_path.resolve()))
    found = {c: kept.exit_code(root, finished[FIRST], left, c) for c in cases.CODES}
    assert kept.differences(found, SAID["codes"]) == []


def test_a_difference_is_found():
    """What the tests above rest on."""
    run = kept.DATA / FIRST / "finished"
    expected, found = (kept.finished_contents(run, kept.ROOT) for _ in range(2))
    assert kept.differences(found, expected) == []
    del found["task.json"]["selecting"]
    found["config.toml"]["more"] = 1
    found["ranks.json"]["matrices"][0]["kept"][0] ^= True
    found["result.json"]["last"]["value"] += 1e-4
    posterior = found["posterior.safetensors"]
    posterior["renamed"] = posterior.pop("sigma/classifier.weight")
    adapter = found["adapter/adapter_model.safetensors"]
    first, second, *_ = (name for name in adapter if name != "metadata")
    adapter[first] = adapter[first] + 1e-4
    adapter[second] = adapter[second].astype("float64")
    places = [line.split(":")[0] for line in kept.differences(found, expected)]
    assert places == [
        f"/adapter/adapter_model.safetensors/{first}",
        f"/adapter/adapter_model.safetensors/{second}",
        "/config.toml/more",
        "/posterior.safetensors/renamed",
        "/posterior.safetensors/sigma/classifier.weight",
        "/ranks.json/matrices/0/kept/0",
        "/result.json/last/value",
        "/task.json/selecting",
    ]
