"""The study of the posterior: its rule, its parts of the data, its cuts and its second script."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from bayeslora_cli.tasks.sources.glue import TASKS, read_tsv
from bayeslora_cli.tasks.sources.own_files import hold_out
from tests.benchmarks.posterior import check, compared_tables, page
from tests.benchmarks.posterior.page_text import Page
from tests.benchmarks.posterior.protocol import PROTOCOL, options_of, trials, write_parts
from tests.benchmarks.posterior.search import choose

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "tests" / "benchmarks" / "posterior" / "measured"


def _lines(family, number, value, nll, sigma=None):
    posterior = None if sigma is None else {"sigma_ratio": sigma}
    best = {"value": value, "metrics": {"validation": {"nll": nll}}}
    return [
        {"job": f"{family}-{number}-{task}", "family": family, "number": number, "task": task,
         "options": {"lr": number}, "best_at_budget": best, "posterior": posterior}
        for task in ("rte", "cola")
    ]  # fmt: skip


def test_the_rule_takes_the_best_metric_and_within_a_point_the_best_nll():
    lines = [
        *_lines("adamw", 0, 0.500, 0.70),
        *_lines("adamw", 1, 0.508, 0.90),
        *_lines("adamw", 2, 0.497, 0.10),  # more than a point below the best
        *_lines("adamw", 3, 0.900, 0.10)[:1],  # one of the two tasks is missing
        *_lines("learned", 0, 0.600, 0.50, sigma=1.2),  # sigma does not differ
        *_lines("learned", 1, 0.300, 0.50, sigma=3.0),
        {"job": "learned-2-rte", "failed": "it diverged"},
    ]
    found = choose(lines)
    assert {family: chosen["number"] for family, chosen in found.items()} == {
        "adamw": 0,
        "learned": 1,
    }


def test_every_family_has_as_many_trials_and_each_gives_a_run():
    found = list(trials())
    numbers = {f: sum(t.family == f for t in found) for f in PROTOCOL["families"]}
    assert len(set(numbers.values())) == 1
    assert [t.family for t in found[:3]] == ["adamw", "paper", "learned"]
    assert options_of("paper", {"lr_times": 2}, "cola")["boost_lr"] == 4.0


def test_the_parts_are_what_validation_holds_out(tmp_path):
    rows = [f"{i}\tsentence {i}\tother {i}\t{('not_' * (i % 3 == 0))}entailment" for i in range(60)]
    folder = tmp_path / "RTE"
    folder.mkdir()
    text = "\n".join(("index\tsentence1\tsentence2\tlabel", *rows)) + "\n"
    (folder / "train.tsv").write_text(text)
    write_parts(tmp_path, ["rte"], tmp_path / "parts", 0.1)
    task = TASKS["rte"]
    whole = read_tsv(folder / "train.tsv", task, labelled=True)
    _, expected = hold_out(task, whole, 0.1)
    for name, split in (("train", "train"), ("dev", "validation")):
        found = read_tsv(tmp_path / "parts" / "RTE" / f"{name}.tsv", task, labelled=True)
        assert (found.first, found.labels) == (expected[split].first, expected[split].labels)


def test_both_scripts_agree_on_tests_and_corrections():
    differences = [0.3, -0.1, 0.2, 0.0, 0.25, 0.3, -0.3, 0.5, 0.6, 0.2]
    expected = float(stats.wilcoxon(differences, method="approx").pvalue)
    assert check.wilcoxon(differences) == pytest.approx(expected)
    assert check.student(24) == pytest.approx(stats.t.ppf(0.975, 24), abs=2e-4)
    assert compared_tables.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert check.spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(
        float(stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4]).statistic)
    )


def test_a_table_of_differences_has_tasks_and_corrected_p():
    written = Page()
    low = {("a", seed): -0.5 - seed for seed in range(6)} | {("b", seed): -7.0 for seed in range(6)}
    none = {("a", seed): (-1.0) ** seed * (seed + 1) for seed in range(6)}
    none |= {("b", seed): -value / 2 for (_, seed), value in none.items()}
    compared_tables.table_of(written, [""], [(["low"], "x", low, 1), (["none"], "y", none, 1)])
    assert (written.numbers["x/pairs"], written.numbers["x/difference"]) == ("12", "-5.0")
    assert written.numbers["x/tasks"] == "-7.0 to -3.0"
    assert written.numbers["x/over-tasks"] == check.summary([-3.0, -7.0], 1, "interval")
    assert written.numbers["x/p"] == compared_tables.p_text(check.wilcoxon([*low.values()]))
    assert float(written.numbers["x/holm"]) == pytest.approx(
        2 * float(written.numbers["x/p"]), abs=1e-3
    )
    assert float(written.numbers["y/holm"]) == float(written.numbers["y/p"]) > 0.5


@pytest.mark.parametrize(
    ("printed", "found", "agree"),
    [
        ("81.2 ± 0.4", "81.2 ± 0.4", True),
        ("81.2 ± 0.4", "81.3 ± 0.4", True),
        ("81.2 ± 0.4", "81.4 ± 0.4", False),
        ("+0.12 to +0.30", "-0.12 to +0.30", False),
        ("62%", "64%", False),
        ("0.12", "0.12 ± 0.01", False),
    ],
)
def test_numbers_may_differ_by_one_in_the_last_digit(printed, found, agree):
    assert check.same(printed, found) is agree


def test_the_page_is_what_its_script_writes(tmp_path, monkeypatch):
    committed = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(committed, encoding="utf-8")
    files = {name: str(MEASURED / f"{name}.jsonl") for name in ("search", "judge", "causal")}
    files |= {"baselines": str(MEASURED / "baselines.jsonl"), "speed": str(MEASURED / "speed.json")}
    options = [text for name, path in files.items() for text in (f"--{name}", path)]
    monkeypatch.setattr("sys.argv", ["page.py", *options, "--page", str(tmp_path / "page.md")])
    page.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == committed


def test_the_second_script_imports_nothing_of_ours():
    text = (Path(check.__file__)).read_text()
    assert "bayeslora_cli" not in text
    assert "from tests" not in text
    assert math.isclose(check.mean([1.0, 2.0]), 1.5)
