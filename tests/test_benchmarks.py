"""The benchmarks run to their end and print their tables; what they measure is nobody's concern."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest
import torch

from tests.support.warm_process import ROOT


@pytest.fixture(autouse=True)
def threads_stay():
    """Scripts set torch's threads; two of them make what follows on a shared core much slower."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("update_cost", "--layers 1,2 --repeats 1 --inner 2 --device cpu", 4),
        (
            "gpu_step",
            "--device cpu --tiny --lengths 8 --precision fp32 --repeats 1 --warm-up 1 --inner 1 "
            "--rows adalora-ivon,blora-adamw,blora-adamw-base,blora-ivon,peft-lora-adamw",
            5,
        ),
        (
            "causal_step",
            "--device cpu --size tiny --repeats 1 --warm-up 1 "
            "--rows adalora-ivon,peft-lora,blora-adamw,blora-adamw-base",
            4,
        ),
    ],
)
def test_it_runs(name, options, rows, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [name, *options.split()])
    with warnings.catch_warnings():
        importlib.import_module(name).main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    titles = [line for line in table if line.startswith(("| layers", "| |"))]
    assert len(table) - len(titles) == rows


@pytest.mark.slow
def test_a_build_against_another(monkeypatch, capsys):
    """Here against itself: both sides run, in turns, and their parts stand side by side."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    words = ["--layers", "1", "--repeats", "1", "--inner", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["update_cost", *words, "--against", str(ROOT)])
    importlib.import_module("update_cost").main()
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("# ")] == [
        "# this build",
        f"# {ROOT}",
    ]
    parts = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| 1 layers")]
    names = ("all", "sample", "penalty", "update", "allocate")
    assert parts == [f"| 1 layers, {kind}: {name}" for kind in ("ivon", "adamw") for name in names]
