"""Writes the study's part of docs/results.md from the lines that its calls have left.

    python -m tests.benchmarks.posterior.page --search LINES... --write-chosen chosen.toml
    python -m tests.benchmarks.posterior.page --search LINES... --judge LINES... \\
        [--causal LINES...] [--baselines LINES...] [--speed FILE] \\
        --page docs/results.md --numbers numbers.json

It replaces what stands between the marks in the page: the study's, and those of the table that
`--speed` gives. `--numbers` names each number of the page as it is printed there; `check.py`, which
shares no code with this script, computes each anew.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.posterior.compared_tables import (
    against_the_point,
    cut_pairs,
    primary,
    secondary,
)
from tests.benchmarks.posterior.judged_tables import agreement, cuts, judged, learnt
from tests.benchmarks.posterior.page_text import TITLES, Page, interval, spread
from tests.benchmarks.posterior.pool import Line, last_runs, read_lines
from tests.benchmarks.posterior.search import RULE, choose, score, write_chosen
from tests.benchmarks.posterior.speed import speed

MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
"""Around a part of the page; what stands between them is written by this script."""


def search(page: Page, lines: Sequence[Line]) -> None:
    """Write the trials and what the rule chose."""
    page.write("### The search")
    page.write("RTE and CoLA, seed 2021, evaluated on a tenth of the training rows.")
    by_trial = defaultdict(list)
    for line in lines:
        by_trial[line["job"].rpartition("-")[0]].append(line)
    rows = []
    for trial, found in sorted(by_trial.items()):
        whole = {line["task"]: line for line in found if "failed" not in line}
        cells = []
        for task in RULE["tasks"]:
            if task not in whole:
                failed = any(x["job"] == f"{trial}-{task}" for x in found)
                cells += ["failed" if failed else "not run", "", ""]
                continue
            line = whole[task]
            name, posterior = f"search/{trial}/{task}", line["posterior"]
            cells += [
                page.number(f"{name}/own", f"{100 * line['best_at_budget']['value']:.1f}"),
                page.number(f"{name}/nll", f"{score([line])[1]:.3f}"),
                "–" if posterior is None
                else page.number(f"{name}/sigma", f"{posterior['sigma_ratio']:.2f}") + "; "
                + page.number(f"{name}/rho", f"{posterior['snr_magnitude_correlation']:.2f}"),
            ]  # fmt: skip
        options: Line = next((line["options"] for line in whole.values()), {})
        rows.append([trial, ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                                      for k, v in options.items()), *cells])  # fmt: skip
    titles = [f"{TITLES[t]}{c}" for t in RULE["tasks"] for c in ("", ", NLL", ", sigma; ρ")]
    page.table(["trial", "setting", *titles], rows)
    page.write(
        "sigma: its 95% over its 5% quantile; ρ: rank correlation of snr's and magnitude's scores",
        "of kept triplets.",
    )
    page.write("Chosen by the rule:")
    for family, chosen in choose(lines).items():
        page.text.append(
            f"- `{family}`: trial "
            + page.number(f"search/chosen/{family}", f"{chosen['number']:02d}")
            + f"; {chosen['of']} trials count."
        )
    page.write()


CAUSAL = ("lora-adamw", "lora-adamw-1e-3", "lora-ivon", "adalora-adamw", "adalora-ivon-snr")
"""The causal model's rows on the page."""


def causal(page: Page, lines: Sequence[Line]) -> None:
    """Write ACC, ECE and NLL of the causal runs on their test rows, and IVON minus AdamW."""
    groups: dict[str, list[Line]] = defaultdict(list)
    shown = {f"{task}-{name}" for task in ("arc-easy", "openbookqa") for name in CAUSAL}
    for line in lines:
        a_run = "shots" not in line and "seed-" in line.get("run", "")
        if a_run and line.get("split") == "test" and line["job"] in shown:
            groups[line["job"]].append(line)
    cells, kinds = [], (("accuracy", 100, 1), ("ece", 1, 3), ("nll", 1, 3))
    for job, group in sorted(groups.items()):
        task = group[0]["task"]
        for at in ("metrics", "sampled"):
            if not all(at in line for line in group):
                continue
            numbers = [
                page.number(
                    f"causal/{job}/{at}/{metric}",
                    spread([factor * x[at]["test"][metric] for x in group], digits),
                )
                for metric, factor, digits in kinds
            ]
            name = job.removeprefix(f"{task}-") + (", samples" if at == "sampled" else "")
            cells.append([TITLES[task], name, str(len(group)), *numbers])
    page.write("### A causal model")
    page.write(
        "SmolLM2-135M, test rows, read once; NLL and ECE are over the choices' softmax. The other",
        "methods and criteria are in [choices.md](choices.md#three-seeds-all-methods).",
    )
    page.table(["task", "run", "seeds", "ACC", "ECE", "NLL"], cells)
    tasks, compared = ("arc-easy", "openbookqa"), []
    for ivon, adamw in (("lora-ivon", "lora-adamw"), ("lora-ivon", "lora-adamw-1e-3"),
                        ("adalora-ivon-snr", "adalora-adamw")):  # fmt: skip
        for at in ("metrics", "sampled"):
            numbers = []
            for metric, factor, digits in kinds:
                d = [
                    factor * (a[at]["test"][metric] - b["metrics"]["test"][metric])
                    for task in tasks
                    for a, b in by_seed(groups[f"{task}-{ivon}"], groups[f"{task}-{adamw}"])
                ]
                centre, reach = interval(d, digits)
                name = f"causal/{ivon} - {adamw}/{at}/{metric}"
                numbers.append(
                    page.number(f"{name}/difference", centre)
                    + " (" + page.number(f"{name}/interval", reach) + "; "
                    + page.number(f"{name}/above", f"{sum(x > 0 for x in d)} of {len(d)}") + ")"
                )  # fmt: skip
            samples = "" if at == "metrics" else ", samples"
            compared.append([f"{ivon}{samples} minus {adamw}", str(len(d)), *numbers])
    page.write(
        "Both tasks together, paired by task and seed (secondary: Student's intervals at 95%, not",
        "corrected; behind them how many of the differences are above 0):",
    )
    page.table(["", "pairs", "ACC, points", "ECE", "NLL"], compared)


def by_seed(a: Sequence[Line], b: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Return the pairs of lines whose runs have one seed."""
    theirs = {line["run"].rpartition("-")[2]: line for line in b}
    pairs = ((line, theirs.get(line["run"].rpartition("-")[2])) for line in a)
    return [(x, y) for x, y in pairs if y is not None]


def baselines(page: Page, lines: Sequence[Line]) -> None:
    """Write the baselines' NLL, ECE, time and memory."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["method"], line["task"]].append(line)
    cells = []
    for (method, task), group in sorted(groups.items()):
        name = f"baselines/{method}/{task}"
        cells.append([method, TITLES[task], str(len(group)), *(
            page.number(f"{name}/{metric}", spread([x[metric] for x in group], digits))
            for metric, digits in (("nll", 3), ("ece", 3), ("seconds", 1), ("megabytes", 1))
        )])  # fmt: skip
    page.write("### Baselines")
    page.table(["method", "task", "of", "NLL", "ECE", "seconds", "MB more"], cells)
    against_the_point(page, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"search": search, "judge": None, "causal": causal, "baselines": baselines}
    for name in parts:
        parser.add_argument(f"--{name}", type=Path, nargs="*", default=[])
    parser.add_argument("--speed", type=Path, help="what gpu_step.py --json has written")
    parser.add_argument("--write-chosen", type=Path)
    parser.add_argument("--page", type=Path, help="the page that holds the marks")
    parser.add_argument("--numbers", type=Path)
    typed = parser.parse_args()
    read: dict[str, list[Line]] = {name: [*read_lines(getattr(typed, name))] for name in parts}
    read["judge"] = last_runs(read["judge"])
    read["baselines"] += [line for line in read["judge"] if "method" in line]
    if typed.write_chosen:
        write_chosen(choose(read["search"]), typed.write_chosen)
    page = Page()
    for name, lines in read.items():
        failed = {line["job"]: line["failed"] for line in lines if "failed" in line}
        for write in (
            (judged, primary, secondary, learnt, agreement, cuts, cut_pairs)
            if name == "judge"
            else (parts[name],)
        ):
            if lines and write is not None:
                write(page, [x for x in lines if "failed" not in x or name == "search"])
        if failed:
            reasons = Counter(text.strip().splitlines()[-1] for text in failed.values())
            page.write(f"Jobs that failed: {page.number(f'{name}/failed', str(len(failed)))}.")
            page.write(*(f"- {count} of them: `{text}`" for text, count in reasons.items()))
    parts_of_page = {"the posterior": "\n".join(page.text)} if page.text else {}
    if typed.speed:
        page.text = []
        speed(page, json.loads(typed.speed.read_text(encoding="utf-8")))
        parts_of_page["speed"] = "\n".join(page.text)
    if typed.numbers:
        typed.numbers.write_text(json.dumps(page.numbers, indent=1) + "\n", encoding="utf-8")
    if typed.page is None:
        print("\n".join(parts_of_page.values()))
        return
    text = typed.page.read_text(encoding="utf-8")
    for name, part in parts_of_page.items():
        begin, end = (mark.format(name) for mark in MARKS)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{part}\n{end}{after}"
    typed.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
