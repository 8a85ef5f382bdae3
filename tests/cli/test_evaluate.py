"""`bayeslora eval` of several runs, from outside."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.scored_runs import write_sweep

HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "numpy", "matplotlib")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def typed(typed):
    """Type `bayeslora eval ...`."""
    return partial(typed, "eval")


def test_a_directory_of_runs_or_several_runs(sweep, typed):
    code, out, err = typed(sweep)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["cola", "stsb", "mrpc", "rte", "group", "2", "seeds", "params",
                                "time"]  # fmt: skip
    assert len([line for line in lines if line.startswith("adalora")]) == 2
    assert "\x1b" not in out
    runs = sorted(path.parent for path in sweep.rglob("result.json"))
    assert typed(*runs)[1] == out
    assert "; 2 runs, " in typed(runs[0], runs[1])[1]


def test_the_forms(sweep, typed):
    found = json.loads(typed(sweep, "--json")[1])
    assert [row["criterion"] for row in found["rows"]] == [None, None, "sensitivity", "snr"]
    assert typed(sweep, "--markdown")[1].startswith("|  | cola |")
    assert r"\begin{tabular}{lrrrrrrrr}" in typed(sweep, "--latex")[1]
    rows = list(csv.DictReader(io.StringIO(typed(sweep, "--csv")[1])))
    assert len(rows) == 20
    (one,) = [p.parent for p in sweep.rglob("*snr*/seed-1/result.json") if "rte" in str(p)]
    assert len(list(csv.DictReader(io.StringIO(typed(one, "--csv")[1])))) == 1


def test_the_evaluation_that_counts(sweep, typed):
    means = {
        at: json.loads(typed(sweep, "--json", "--at", at)[1])["rows"][0]["values"]["rte"]
        for at in ("best_at_budget", "last")
    }
    assert means["best_at_budget"] - means["last"] == pytest.approx(1)
    assert "the last evaluation, in" in typed(sweep, "--at", "last")[1]


def test_a_paired_test(sweep, typed):
    code, out, _ = typed(sweep, "--paired", "snr", "sensitivity")
    assert code == 0
    last = out.split("\n\n")[-1].splitlines()
    assert last[0] == "adalora-ivon-snr-r2 minus adalora-adamw-sensitivity-r2"
    assert last[-2].split()[:3] == ["together", "12", "+2.00"]
    assert last[-1].startswith("more than noise: Wilcoxon's signed-rank test over 12 pairs")
    found = json.loads(typed(sweep, "--paired", "snr", "sensitivity", "--json")[1])["paired"]
    assert found["significant"] is True
    latex = typed(sweep, "--paired", "snr", "sensitivity", "--latex")[1]
    assert latex.splitlines()[-1].startswith("% more than noise")


def test_a_reference(sweep, typed, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(typed(sweep, "--json")[1])
    out = typed(sweep, "--reference", path)[1]
    assert out.count("- reference") == 4
    assert out.count("+0.00") == 4 * 5


def test_no_model_is_loaded(sweep):
    program = (
        "import sys\nfrom bayeslora_cli.cli.app import main\n"
        f"sys.argv = ['bayeslora', 'eval', {str(sweep)!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stderr.split() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "--json and --csv: all go to stdout"),
        (["--at", "bst"], r"--at bst: choose one of best_at_budget, best, last (did you mean "),
        (["--samples", 2], "--samples: it is for evaluating one run"),
        (["--split", "test"], "--split: it is for evaluating one run"),
        (["--device", "cpu", "--markdown"], "--device: it is for evaluating one run"),
        (["--paired", "x", "snr"], "--paired x: no such row"),
        (["--reference", "none.json"], "--reference none.json: cannot be read"),
        (["nowhere"], "nowhere: no such directory"),
    ],
)
def test_what_a_user_can_mend(sweep, typed, arguments, message):
    code, out, err = typed(sweep, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error: ") == 1
