"""The allocation over time: read, averaged, and where it cannot be."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.history_reading import load_history
from bayeslora_cli.reports.ranks.run_groups import load_group
from tests.support.finished_runs import reseal
from tests.support.ranked_runs import (
    allocation,
    constant,
    history_lines,
    names,
    write_run,
    write_seeds,
)

NAMES = names(1)[:2]
REPORT = allocation(NAMES, share=1, step=99)


def line(step, *ranks):
    """A line of ranks.jsonl."""
    return {"step": step, "budget": sum(ranks), "ranks": dict(zip(NAMES, ranks, strict=True))}


def history_of(path, *lines):
    write_run(path, REPORT, lines)
    return load_history(load_group([path]))


def test_by_hand(tmp_path):
    """A rank that comes back, and one that is never lost."""
    found = history_of(tmp_path / "run", line(10, 3, 3), line(20, 1, 3), line(31, 2, 3))
    assert found.steps.tolist() == [0, 20, 31]  # nothing changed at 10
    assert found.ranks.tolist() == [[3, 3], [1, 3], [2, 3]]
    assert found.budget.tolist() == [6, 4, 5]
    assert found.first_loss == (20, None)
    assert found.settled == (31, None)
    assert found.at(np.array([0, 19, 20, 30, 31, 99])).tolist() == [
        [3, 3], [3, 3], [1, 3], [1, 3], [2, 3], [2, 3],
    ]  # fmt: skip
    text = found.draw(width=80, colour=False, unicode=False).plain
    assert re.search(r"^W_q 0 +3 .* 2 +21 +32$", text, re.MULTILINE)
    assert re.search(r"^W_k 0 +3 .* 3 +- +-$", text, re.MULTILINE)
    # the files count from 0, the screen from 1
    assert "5 of 6 triplets kept; no change before step 21 nor after step 32 of 100" in text
    columns = [int(n) for n in text.splitlines()[2].split()[1:-2]]
    assert (columns[0], columns[-1]) == (20, 32)
    assert [found.at(np.array([n - 1])).sum() for n in columns] == [
        int(n) for n in text.splitlines()[3].split()[1:]
    ]


def test_a_loss_at_the_first_step(tmp_path):
    found = history_of(tmp_path / "run", line(0, 2, 3), line(1, 2, 2))
    assert found.steps.tolist() == [0, 1]
    assert found.first_loss == (0, 1)


def test_nothing_is_ever_lost(tmp_path):
    found = history_of(tmp_path / "run", line(5, 3, 3))
    assert found.steps.tolist() == [0]
    assert "6 of 6 triplets kept; no rank ever changes" in found.draw(
        width=80, colour=True, unicode=True
    ).plain.replace("\n", " ")


def test_means_over_runs(tmp_path):
    write_run(tmp_path / "a", REPORT, [line(10, 1, 3), line(30, 1, 1)])
    write_run(tmp_path / "b", REPORT, [line(20, 2, 3)])
    found = load_history(load_group([tmp_path]))
    assert found.steps.tolist() == [0, 10, 20, 30]
    assert found.ranks.tolist() == [[3, 3], [2, 3], [1.5, 3], [1.5, 2]]
    assert found.first_loss == (15, 30)  # of the runs in which there is one
    assert found.settled == (15, 30)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_every_step_is_as_the_file_says(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("history") / "run"
    lines = [line(7 * i + 3, *ranks) for i, ranks in enumerate(rows)]
    found = history_of(path, *lines)
    for step in range(70):
        before = [at for at in lines if at["step"] <= step]
        wanted = list(before[-1]["ranks"].values()) if before else [3, 3]
        assert found.at(np.array([step]))[0].tolist() == wanted
    changes = np.diff(found.ranks, axis=0)
    assert np.abs(changes).sum(axis=1).all(), "steps at which nothing changes"


def test_the_lines_are_those_of_the_kinds(tmp_path):
    """All matrices once, the paper's kinds first, layers from 0, what is outside last."""
    write_seeds(tmp_path, names(3))
    found = load_history(load_group([tmp_path]))
    shown = [found.group.matrices[i] for i in found.order()]
    assert len({m.name for m in shown}) == len(found.group.matrices)
    assert [(m.kind, m.layer) for m in shown] == [
        *((k, n) for k in ("W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2") for n in range(3)),
        ("W_pool", None),
    ]


def test_rows_repeat_the_json(tmp_path):
    write_seeds(tmp_path, NAMES)
    found = load_history(load_group([tmp_path]))
    value = found.to_json()
    rows = list(found.rows())
    assert len(rows) == len(value["steps"]) * 2
    for i, matrix in enumerate(value["matrices"]):
        of_matrix = [row for row in rows if row["name"] == matrix["name"]]
        assert [row["rank"] for row in of_matrix] == matrix["ranks"]
        assert [row["step"] for row in of_matrix] == value["steps"]
        assert found.group.matrices[i].name == matrix["name"]


# ---- faults


def test_constant_ranks_have_no_history(tmp_path):
    write_run(tmp_path / "lora", constant(REPORT))
    with pytest.raises(UserError, match=r"--history: the ranks of .*lora are constant"):
        load_history(load_group([tmp_path]))


def test_runs_of_other_lengths(tmp_path):
    write_run(tmp_path / "a", REPORT, [line(10, 3, 3)])
    write_run(tmp_path / "b", replace(REPORT, step=199), [line(10, 3, 3)])
    with pytest.raises(UserError, match=r"a has 100 steps, .*b 200; show runs of one length"):
        load_history(load_group([tmp_path]))


def test_a_missing_file_is_named(tmp_path):
    write_run(tmp_path / "run", REPORT)
    with pytest.raises(RunDirError, match=r"run/ranks\.jsonl is missing"):
        load_history(load_group([tmp_path]))


GOOD = json.dumps(line(10, 3, 2))


@pytest.mark.parametrize(
    "bad",
    [
        "", "{", "[]", "3", '{"step": 11}', GOOD.replace("3", '"3"'), GOOD.replace("3", "null"),
        GOOD.replace("3", "1.5"), GOOD.replace("3", "4"), GOOD.replace("3", "-1"),
        GOOD.replace("10", "9"), GOOD.replace("10", "100"), GOOD,
        GOOD.replace("query", "other"), GOOD[:-5],
    ],
)  # fmt: skip
def test_a_corrupt_line_is_named(tmp_path, bad):
    run = write_run(tmp_path / "run", REPORT, [line(10, 3, 2)])
    run.ranks_history.write_text(f"{GOOD}\n{bad}\n")
    reseal(run.path)
    with pytest.raises(RunDirError, match=r"run/ranks\.jsonl, line 2: corrupt"):
        load_history(load_group([tmp_path]))


def test_the_made_up_lines_lose_ranks(tmp_path):
    """What the tests of the drawings rest on."""
    write_run(tmp_path / "run", allocation(names(2)), history_lines(names(2)))
    found = load_history(load_group([tmp_path]))
    assert found.budget[0] == 39
    assert found.budget[-1] == 26
    assert (np.diff(found.budget) <= 0).all()


def quantized(report, *widths):
    """The report with one width for all operands of each matrix."""
    matrices = (
        replace(m, bits=dict.fromkeys("ABExah", w))
        for m, w in zip(report.matrices, widths, strict=True)
    )
    return replace(report, matrices=tuple(matrices), criterion="gates")


def gated_line(step, ranks, a, b):
    """A line of ranks.jsonl; `a` and `b`: widths of the first operand, 2 of the others."""
    bits = {n: {"A": w} | dict.fromkeys("BExah", 2) for n, w in zip(NAMES, (a, b), strict=True)}
    return {**line(step, *ranks), "bits": bits}


def test_widths_over_the_steps(tmp_path):
    """32 before anything is quantized, which is no narrowing; a width may grow again."""
    write_run(
        tmp_path / "run", quantized(REPORT, 2, 2),
        [
            gated_line(10, (3, 3), 8, 8),
            gated_line(20, (3, 3), 8, 2),
            gated_line(31, (1, 3), 8, 8),
        ],
    )  # fmt: skip
    group = load_group([tmp_path / "run"])
    found = load_history(group)
    assert found.steps.tolist() == [0, 10, 20, 31]
    assert found.bits.tolist() == [[32, 32], [3, 3], [3, 2], [3, 3]]
    assert (found.first_loss, found.settled) == ((31, None), (31, None))
    assert (found.first_narrower, found.settled_bits) == ((None, 20), (None, 31))
    assert found.to_json()["matrices"][1]["bits"] == [32, 3, 2, 3]
    assert [row["bits"] for row in found.rows()] == [32, 32, 3, 3, 3, 2, 3, 3]
    text = found.draw(width=60, colour=False, unicode=False).plain
    ranks, bits = text.split("mean")
    assert re.search(r"^W_k 0 .* 3 +- +-$", ranks, re.MULTILINE)
    assert re.search(r"^W_k 0 +32 .* 3 +21 +32$", bits, re.MULTILINE)
    assert "first loss or narrower width" in text
    assert found.courses()[1].top == 3
    write_run(tmp_path / "other", replace(REPORT, criterion="gates"), [line(10, 3, 3)])
    mixed = load_history(load_group([tmp_path / "run", tmp_path / "other"]))
    assert mixed.bits is None


@pytest.mark.parametrize("bits", [None, {}, {NAMES[0]: {}}, {NAMES[0]: {"A": "x"}}, {NAMES[0]: 3}])
def test_corrupt_widths_are_named(bits, tmp_path):
    write_run(tmp_path / "run", quantized(REPORT, 2, 2), [{**line(1, 3, 3), "bits": bits}])
    with pytest.raises(RunDirError, match=r"ranks.jsonl, line 1: corrupt"):
        load_history(load_group([tmp_path]))
