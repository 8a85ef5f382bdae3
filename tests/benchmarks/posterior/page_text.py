"""What the study's tables are made of: lines of Markdown, numbers by name, metrics of a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from tests.benchmarks.posterior.pool import Line
from tests.benchmarks.posterior.protocol import PROTOCOL

JUDGE: dict[str, Any] = PROTOCOL["judge"]
TITLES = {
    "sst2": "SST-2", "mnli": "MNLI*", "qnli": "QNLI*", "stsb": "STS-B", "mrpc": "MRPC",
    "rte": "RTE", "cola": "CoLA", "arc-easy": "ARC-Easy", "openbookqa": "OpenBookQA",
}  # fmt: skip


class Page:
    """The lines of Markdown, and the numbers in them by name."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.numbers: dict[str, str] = {}

    def number(self, name: str, text: str) -> str:
        """Note a number of the page; return it."""
        self.numbers[name] = text
        return text

    def write(self, *lines: str) -> None:
        self.text += [*lines, ""]

    def table(self, title: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [f"| {' | '.join(row)} |" for row in (title, ["---"] * len(title), *rows)]
        self.write(*lines)


def own(task: str, metrics: Line) -> float:
    """Return a task's own metric from those of its dev splits: MNLI's is of the matched one."""
    found = metrics.get("validation_matched") or metrics["validation"]
    if task == "stsb":
        return (float(found["pearson"]) + float(found["spearman"])) / 2
    return float(found["matthews" if task == "cola" else "accuracy"])


def value(line: Line, metric: str, at: str) -> float:
    """Return a number of a `dev` line, of MNLI the matched split's; `own` in percent; `ood`: AUROC
    by entropy, of scores by their variance; `mutual`: by mutual information."""
    if metric in ("ood", "mutual"):
        found = line["ood"][at]
        auroc = found.get("validation_matched") or found["validation"]
        if metric == "mutual":
            return float(auroc["mutual_information"])
        return float(auroc["entropy" if "entropy" in auroc else "variance"])
    metrics = line["metrics" if at == "mean" else "sampled"]
    if metric == "own":
        return 100 * own(line["task"], metrics)
    return float((metrics.get("validation_matched") or metrics["validation"])[metric])


def spread(values: Sequence[float], digits: int) -> str:
    """Write a mean and a standard deviation."""
    written = f"{fmean(values):.{digits}f}"
    return written if len(values) < 2 else f"{written} ± {stdev(values):.{digits}f}"


def interval(d: Sequence[float], digits: int) -> tuple[str, str]:
    """Write the mean of differences and Student's interval at 95%."""
    t = stats.ttest_1samp(d, 0.0).confidence_interval(0.95)
    return f"{fmean(d):+.{digits}f}", f"{t.low:+.{digits}f} to {t.high:+.{digits}f}"
