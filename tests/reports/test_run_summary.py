"""What a finished run and an evaluation print."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bayeslora_cli.reports.run_summary import closing_table, side_by_side
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport

pytestmark = pytest.mark.usefixtures("quiet_machine")


def record(step, **splits):
    return {"step": step, "epoch": 1.0, "metrics": splits, "value": 0.5}


RESULT = {
    "best": record(299, validation={"accuracy": 0.75, "f1": 0.8}),
    "best_at_budget": record(349, validation={"accuracy": 0.625, "f1": 0.7}),
    "last": record(99_999, validation={"accuracy": 0.5, "f1": 1.0}),
    "selecting": "accuracy", "task": "mrpc", "outputs": 2, "steps": 100_000, "seconds": 130.2,
    "train_seconds": 100.0, "steps_per_second": 12.345, "trainable_parameters": 1_327_104,
    "kept_parameters": 664_000, "ranks": {"0.query": 2}, "peak_memory_bytes": 680_000_000,
}  # fmt: skip
MATRIX = MatrixReport(
    name="0.query", layer=0, kind="W_q", in_features=8, out_features=4, init_rank=3, rank=2,
    kept=(True, False, True), scores=None,
)  # fmt: skip
REPORT = RankReport(step=9, budget=2, criterion="snr", matrices=(MATRIX,))


def closing(result=RESULT, report=REPORT, **options):
    stream = io.StringIO()
    closing_table(result, report, Console(file=stream, width=80, **options))
    return stream.getvalue()


def test_the_closing_table():
    assert closing() == (
        "                  step  accuracy      f1\n"
        "best               300    0.7500  0.8000\n"
        "best_at_budget     350    0.6250  0.7000\n"
        "last            100000    0.5000  1.0000\n"
        "\n"
        "best by               accuracy on validation\n"
        "trainable parameters  1,327,104\n"
        "kept parameters       664,000\n"
        "training time         1m40s, with evaluations 2m10s\n"
        "steps per second      12.3\n"
        "peak memory           0.68 GB\n"
        "\n"
        "layer  0    sum\n"
        "W_q    2█     2\n"
        "sum    2      2\n"
        "\n"
        "rank  0 ░▒▓█ 2\n"
        "2 of 3 triplets kept (67%), mean rank 2.00 of 1 matrices\n"
    )


def test_two_splits_side_by_side():
    splits = ("validation_matched", "validation_mismatched")
    at = {
        name: record(9, **{split: {"accuracy": 0.25 * (i + 1)} for i, split in enumerate(splits)})
        for name in ("best", "best_at_budget", "last")
    }
    lines = closing(RESULT | at).splitlines()
    assert lines[0].split("  ")[-2:] == ["matched accuracy", "mismatched accuracy"]
    assert [x.split() for x in lines[1:4]] == [
        [name, "10", "0.2500", "0.5000"] for name in ("best", "best_at_budget", "last")
    ]
    assert "accuracy on validation_matched" in lines[5]
    assert max(map(len, lines)) <= 80


def test_what_gates_have_come_to():
    cost = {"adapter_relative": 0.0312, "with_base_relative": 0.97, "storage_bytes": 12_345,
            "storage_relative": 0.25}  # fmt: skip
    lines = closing(RESULT | {"cost": cost, "mean_rank": 2.5, "mean_bits": 4.25}).splitlines()
    assert "ranks and widths      mean rank 2.50, mean width 4.25 bits" in lines
    wanted = "bit operations        3.12% of 32 x 32 at the first rank, with the base 97.00%"
    assert wanted in lines
    assert "adapters' storage     12,345 bytes, 25.00%" in lines
    assert max(map(len, lines)) <= 80


def test_only_methods_that_allocate_have_a_heatmap():
    fixed = RankReport(step=9, budget=2, criterion=None, matrices=(MATRIX,))
    assert closing(report=None) == closing(report=fixed)
    assert closing().startswith(closing(report=None))
    assert "layer" not in closing(report=None)


def test_no_memory_is_known_on_a_cpu():
    assert "memory" not in closing(RESULT | {"peak_memory_bytes": None})


def test_the_posterior_and_its_note():
    """On a line, and the note wrapped, before the heatmap; nothing for a point estimate."""
    summary = {
        "hessian_over_h0": {"q05": 0.66297, "median": 0.96, "q95": 1.64015},
        "sigma_ratio": 1.5729,
        "snr_magnitude_correlation": None,
        "note": None,
    }
    line = re.search("^posterior .*", closing(RESULT | {"posterior": summary}), re.M)[0]
    assert line.split("  ")[-1].strip() == "h/h0 0.663 to 1.64, sigma 95%/5% 1.57"
    with_order = summary | {"snr_magnitude_correlation": 0.7388}
    assert "1.57, snr against magnitude 0.739\n" in closing(RESULT | {"posterior": with_order})
    note = " ".join(["sigma is almost constant:"] * 9)
    text = closing(RESULT | {"posterior": summary | {"note": note}})
    before, _, after = text.partition("\n\nnote: ")
    assert before.endswith(line)
    written, _, heatmap = after.partition("\n\n")
    assert written.replace("\n", " ") == note
    assert max(map(len, text.splitlines())) <= 80
    assert closing().endswith(heatmap)
    assert closing(RESULT | {"posterior": None}) == closing()


def test_side_by_side():
    result = {
        "metrics": {"validation": {"accuracy": 0.5, "nll": 1.25}},
        "sampled": {"validation": {"accuracy": 0.625, "nll": 1.0}},
        "samples": 16,
        "ood": {
            "source": "sst2",
            "rows": 9,
            "mean": {"validation": {"entropy": 0.75}},
            "sampled": {"validation": {"entropy": 0.7, "mutual_information": 1.0}},
        },
    }
    assert side_by_side(result).splitlines() == [
        "                            mean  16 samples",
        "validation",
        "  accuracy                0.5000      0.6250",
        "  nll                     1.2500      1.0000",
        "AUROC, sst2 against validation",
        "  entropy                 0.7500      0.7000",
        "  mutual_information           -      1.0000",
    ]
    at_mean = {"metrics": {}, "ood": {k: v for k, v in result["ood"].items() if k != "sampled"}}
    assert side_by_side(at_mean).splitlines() == [
        "                 mean",
        "AUROC, sst2 against validation",
        "  entropy      0.7500",
    ]


def test_colours_on_a_terminal_alone():
    assert "\x1b" not in closing()
    assert "\x1b" in closing(force_terminal=True, color_system="256")
    plain = closing(force_terminal=True, color_system="256", _environ={"NO_COLOR": "1"})
    assert plain == closing()
