"""What the table says of rows beside each other, and the reference that it takes."""

from __future__ import annotations

import json

import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.results.rows import load_results
from bayeslora_cli.reports.results.table import Table, read_reference
from tests.support.scored_runs import ROWS, gated, write_scored, write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("runs"))


def reference(path, *values, **changes):
    row = {"method": "adalora", "optimizer": "ivon", "criterion": "snr", "target_rank": 2}
    rows = [{**row, "values": found, **changes} for found in values]
    path.write_text(json.dumps({"source": "a paper", "rows": rows}))
    return path


def marks(tmp_path, *scores):
    for row, score in zip(ROWS, scores, strict=False):
        write_scored(tmp_path, "rte", score, **ROWS[row])
    table = Table(results=load_results([tmp_path]))
    return [table.marks.get((row.name, "rte"), "") for row in table.results.rows]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.8, 0.6, 0.7], ["", "best", "", "second"]),
        ([0.8, 0.8, 0.6, 0.7], ["best", "best", "", "second"]),
        ([0.8, 0.7, 0.7, 0.6], ["best", "second", "second", ""]),
        ([0.80004, 0.80001, 0.7], ["best", "best", "second"]),  # as they are printed
        ([0.1, 0.09, 0.02], ["best", "second", ""]),  # numbers, not texts
        ([-0.1, 0.0, -0.2], ["second", "best", ""]),
        ([0.8, 0.8], ["", ""]),
        ([0.8], [""]),
    ],
)
def test_best_and_second(tmp_path, scores, expected):
    assert marks(tmp_path, *scores) == expected


def test_differences(sweep, tmp_path):
    path = reference(tmp_path / "r.json", {"rte": 60.0, "mnli": 90.0, "group2": 70.0})
    table = Table(results=load_results([sweep]), reference=read_reference(path))
    found = [table.differences(row) for row in table.results.rows]
    assert found[:3] == [{}, {}, {}]
    snr = table.results.rows[3].cells
    assert found[3] == {
        "rte": snr["rte"].mean - 60, "group2": snr["group2"].mean - 70,
    }  # fmt: skip
    lines = dict(table.lines())
    shown = [entry.value for entry in lines["- reference"]]
    assert shown[table.results.columns.index("rte")] == f"{found[3]['rte']:+.2f}"
    assert shown[table.results.columns.index("mrpc")] == ""
    assert "a paper" in table.caption()


def test_a_table_is_a_reference(sweep, tmp_path):
    """One's own earlier results, for one's new ones."""
    table = Table(results=load_results([sweep]))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(table.to_json()))
    again = Table(results=table.results, reference=read_reference(path))
    for row in again.results.rows:
        assert again.differences(row) == dict.fromkeys(row.cells, 0.0)


def test_rows_without_rank_and_criterion_are_found(sweep, tmp_path):
    """As the paper's table has full fine-tuning: null for what a row has not."""
    none = {"method": "full", "optimizer": "adamw", "criterion": None, "target_rank": None}
    path = reference(tmp_path / "r.json", {"rte": 60}, **none)
    table = Table(results=load_results([sweep]), reference=read_reference(path))
    assert [list(table.differences(row)) for row in table.results.rows] == [["rte"], [], [], []]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no table of results"),
        ("{}", "is no table of results"),
        ('{"rows": [{"method": "full"}]}', "is no table of results"),
        ('{"rows": 3}', "is no table of results"),
    ],
)
def test_what_is_no_reference(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"--reference .*r\.json: {message}"):
        read_reference(path)


@pytest.mark.parametrize("value", ["90", None, True, float("nan"), [90]])
def test_a_value_that_is_no_number(tmp_path, value):
    with pytest.raises(UserError, match="is no table of results"):
        read_reference(reference(tmp_path / "r.json", {"rte": value}))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"--reference .*: cannot be read: No such file"):
        read_reference(tmp_path / "r.json")


def test_as_data(sweep):
    table = Table(results=load_results([sweep]))
    found = table.to_json()
    assert list(found) == ["schema", "at", "columns", "rows"]
    assert [row["name"] for row in found["rows"]] == [row.name for row in table.results.rows]
    for row, mine in zip(found["rows"], table.results.rows, strict=True):
        assert row["values"] == {c: cell.mean for c, cell in mine.cells.items()}
        assert len(row["runs"]) == 12
        assert (row["trainable_parameters"], row["seconds"]) == (330_000, 60)
        assert list(row["scores"]["rte"]) == ["1", "2", "3"]
    rows = list(table.rows())
    assert len(rows) == 4 * 5
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_gates_save_is_beside_the_metric(tmp_path):
    """Rows by mode and lambda, the preset's own values said, too; in the order of the numbers."""
    for seed in (1, 2):
        blora = {"method": "blora", "optimizer": "adamw", "rank": 4, "seed": seed}
        for mode, quant, bits in (
            ("both", 0.001, 4.0), ("both", 1e-4, 8.0), ("both", 0.01, 2.0), ("rank", None, 32.0),
        ):  # fmt: skip
            typed = {"blora_mode": mode} | ({} if quant is None else {"lambda_quant": quant})
            found = gated({"a": seed, "b": 4}, bits + seed, bits / 32)
            write_scored(tmp_path, "rte", 0.6, more_result=found, **blora, **typed)
        write_scored(tmp_path, "rte", 0.7, method="lora", optimizer="adamw", rank=4, seed=seed)
    table = Table(results=load_results([tmp_path]))
    heads = table.titles()
    shown = {
        name: dict(zip(heads[1:], (e.value for e in entries), strict=True))
        for name, entries in table.lines()
    }
    row = "blora-adamw-r4 blora_mode={} lambda_quant={}"
    assert list(shown) == [
        "lora-adamw-r4",
        row.format("both", 0.0001),
        row.format("both", 0.001),
        row.format("both", 0.01),
        "blora-adamw-r4 blora_mode=rank",
    ]
    found = shown[row.format("both", 0.001)]
    assert [found[h] for h in ("seeds", "rank", "bits", "bit ops", "with base")] == [
        "2", "2.75", "5.50", "12.5%", "99.0%",
    ]  # fmt: skip
    plain = shown["lora-adamw-r4"]
    assert [plain[h] for h in ("rank", "bits", "bit ops", "with base")] == ["4.00", "", "", ""]
    assert "relative to 32 x 32 bits" in table.caption()
    of_lora, first, *_ = table.to_json()["rows"]
    assert (of_lora["mean_rank"], of_lora["relative_bit_operations"]) == (4, None)
    assert (first["mean_bits"], first["relative_bit_operations"]) == (9.5, 0.25)
    assert first["settings"]["lambda_quant"] == 1e-4
    lines = list(table.rows())
    assert all(line.keys() == lines[0].keys() for line in lines)
    assert lines[1]["relative_bit_operations_with_base"] == 0.99


def test_no_columns_of_gates_without_gates(sweep):
    assert "bit ops" not in Table(results=load_results([sweep])).titles()


def test_losses_are_not_in_percent(tmp_path):
    """As of chats, which have no share of right answers."""
    write_scored(tmp_path, "rte", 0.7)
    found = load_results([tmp_path])
    assert ", in percent: mean" in Table(results=found).caption()
    chats = write_scored(tmp_path, "mrpc", 2.64, more_result={"selecting": "nll"})
    table = Table(results=load_results([tmp_path]))
    assert ", in percent but for nll of mrpc, of which less is better: mean" in table.caption()
    ((_, entries),) = table.lines()
    assert {entry.value for entry in entries} >= {"70.00", "2.6400"}
    table = Table(results=load_results([chats.path]))
    assert "budget, nll of mrpc, of which less is better: mean" in table.caption()
