"""Prints summaries of a run and of an evaluation on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bayeslora_cli.config.values import duration
from bayeslora_cli.reports.terminal_text import print_plain, three_digits
from bayeslora_cli.runs.rank_report import RankReport

if TYPE_CHECKING:
    from rich.console import Console


_OF_GROUPS = ("accuracy", "accuracy_norm", "nll", "ece")  # what is shown of each group


def closing_table(result: Mapping[str, Any], report: RankReport | None, console: Console) -> None:
    """Print the results of a finished run.

    Args:
        result: the run's result.json.
        report: its ranks, drawn if a criterion allocated them; None: the run has no adapters.
        console: writes to stdout.
    """
    splits = result["last"]["metrics"]
    # a single split is named below; names of several must leave room on 80 columns
    prefixes = {s: f"{s.removeprefix('validation_')} " if len(splits) > 1 else "" for s in splits}
    rows = [["", "step", *(prefixes[split] + name for split in splits for name in splits[split])]]
    for name in ("best", "best_at_budget", "last"):
        metrics = result[name]["metrics"]
        values = [f"{value:.4f}" for split in splits for value in metrics[split].values()]
        rows.append([name, str(result[name]["step"] + 1), *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print_plain(console, "  ".join([f"{first:{widths[0]}}", *cells]))

    memory = result["peak_memory_bytes"]
    facts = {
        "best by": f"{result['selecting']} on {next(iter(splits))}",
        **_stop(result),
        "trainable parameters": f"{result['trainable_parameters']:,}",
        "kept parameters": f"{result['kept_parameters']:,}",
        "training time": f"{duration(result['train_seconds'])}, "
        f"with evaluations {duration(result['seconds'])}",
        "steps per second": three_digits(result["steps_per_second"]),
        **_gate_facts(result),
        **({} if memory is None else {"peak memory": f"{memory / 1e9:.2f} GB"}),
    }
    print_plain(console, "")
    for name, fact in facts.items():
        print_plain(console, f"{name:{max(map(len, facts))}}  {fact}")

    posterior = result.get("posterior") or {}
    if posterior:
        print_plain(console, f"{'posterior':{max(map(len, facts))}}  {posterior_line(posterior)}")
    note = posterior.get("note")
    if note is not None:
        print_plain(console, "")
        print_plain(console, textwrap.fill(f"note: {note}", console.width))

    if report is not None and report.criterion is not None:
        from bayeslora_cli.reports.ranks.heatmap import print_heatmap

        print_plain(console, "")
        print_heatmap(report, console)


def _stop(result: Mapping[str, Any]) -> dict[str, str]:
    """Return how early stopping ended the run; {} if it did all its steps."""
    if "stopped_early" not in result:
        return {}
    found = result["stopped_early"]
    ranks = ", rank schedule completed" if "rank_schedule" in found else ""
    steps = f"step {result['steps']:,} of {found['planned_steps']:,}"
    return {"stopped early": f"at {steps}, --patience {found['patience']}{ranks}"}


def _gate_facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Return facts about ranks, widths and bit operations learned by gates; {} without gates."""
    if "cost" not in result:
        return {}
    cost = result["cost"]
    return {
        "ranks and widths": f"mean rank {result['mean_rank']:.2f}, "
        f"mean width {result['mean_bits']:.2f} bits",
        "bit operations": bit_operations_text(cost),
        "adapters' storage": f"{cost['storage_bytes']:,} bytes, {cost['storage_relative']:.2%}",
    }


def bit_operations_text(cost: Mapping[str, float]) -> str:
    """Write the bit operations of a run with gates (`cost` of its result.json) on one line."""
    of_model = ""
    if "model_relative" in cost:
        of_model = f", of the whole model {cost['model_relative']:.2%}"
    return (
        f"{cost['adapter_relative']:.2%} of 32 x 32 at the first rank, "
        f"with the base {cost['with_base_relative']:.2%}{of_model}"
    )


def posterior_line(summary: Mapping[str, Any]) -> str:
    """Write the summary of a posterior (`bayes.posterior_summary`) on one line."""
    ratios = summary["hessian_over_h0"]
    parts = [
        f"h/h0 {ratios['q05']:.3g} to {ratios['q95']:.3g}",
        f"sigma 95%/5% {summary['sigma_ratio']:.3g}",
    ]
    if summary["snr_magnitude_correlation"] is not None:
        parts.append(f"snr against magnitude {summary['snr_magnitude_correlation']:.3f}")
    return ", ".join(parts)


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Write an evaluation (`evaluate_run`): one line where there is nothing to compare."""
    if result.keys().isdisjoint(("sampled", "ood")):
        from bayeslora_cli.evaluation.forward_passes import describe  # torch

        text = describe(result["metrics"])
    else:
        text = side_by_side(result)
    from bayeslora_cli.reports.details_text import details_text  # rich

    lines = [text, *details_text(result), *_groups(result)]
    if "cost" in result:
        lines += ["", f"bit operations per token: {bit_operations_text(result['cost'])}"]
    return "\n".join(lines)


def _groups(result: Mapping[str, Any]) -> list[str]:
    """Write the metrics by group, a line for each group and what it holds, which is indented.

    They are those over the samples, if there are any.
    """
    found: Mapping[str, Mapping[str, Mapping[str, float]]] = {}
    for at in ("mean", "sampled"):
        found = result.get("groups", {}).get(at, found)
    lines = []
    for split, groups in found.items():
        names = [name for name in _OF_GROUPS if any(name in group for group in groups.values())]
        titles = {
            name: "  " * name.count("/") + name.rpartition("/")[2].replace("_", " ")
            for name in groups
        }
        width = max(map(len, (split, *titles.values())))
        lines += ["", f"{split:{width}}" + "".join(f"{name:>15}" for name in ("rows", *names))]
        for name, group in groups.items():
            cells = "".join(f"{group[key]:15.4f}" for key in names)
            lines.append(f"{titles[name]:{width}}{group['rows']:15,}{cells}")
    return lines


def side_by_side(result: Mapping[str, Any]) -> str:
    """Write an evaluation (`evaluate_run`), one line per number: at the mean, and over samples."""
    columns = {"metrics": "mean"}
    if "sampled" in result:
        columns["sampled"] = f"{result['samples']} sample{'s' if result['samples'] > 1 else ''}"
    blocks: dict[str, dict[str, list[float | None]]] = {}
    for split, names in result["metrics"].items():
        blocks[split] = {
            name: [result[column][split][name] for column in columns] for name in names
        }
    if "ood" in result:
        outside = [result["ood"][at] for at in ("mean", "sampled") if at in result["ood"]]
        for split, names in outside[-1].items():
            title = f"AUROC, {result['ood']['source']} against {split}"
            blocks[title] = {name: [at[split].get(name) for at in outside] for name in names}
    width = max(len(name) for names in blocks.values() for name in names) + 2
    lines = [" " * width + "".join(f"{name:>12}" for name in columns.values())]
    for title, names in blocks.items():
        lines.append(title)
        for name, values in names.items():
            cells = ("-" if value is None else f"{value:.4f}" for value in values)
            lines.append(f"  {name:{width - 2}}" + "".join(f"{cell:>12}" for cell in cells))
    if result.get("posterior"):
        lines.append(f"posterior: {posterior_line(result['posterior'])}")
    return "\n".join(lines)


def cut_text(found: dict[str, Any]) -> str:
    """Write the table for a terminal: a line per rank, a column per order, for each metric.

    Metrics over samples follow those at the mean; singular values have none.
    """
    lines = []
    for kind, title in (("metrics", ""), ("sampled", ", over samples")):
        cuts = [row for row in found["cuts"] if kind in row]
        splits = found["whole"].get(kind, {}) if cuts else {}
        for split, name in ((split, name) for split, own in splits.items() for name in own):
            at = {(row["by"], row["rank"]): row[kind][split][name] for row in cuts}
            lines.append(f"{split} {name}{title}")
            lines += _cut_lines(at, found["whole"]["rank"], splits[split][name])
    return "\n".join(lines)


def _cut_lines(at: Mapping[tuple[str, float], float], own: float, whole: float) -> list[str]:
    """Write one metric of cuts.

    Args:
        at: its values, by order and rank.
        own: the rank without a cut.
        whole: the value there.
    """
    orders = list(dict.fromkeys(by for by, _ in at))
    ranks = sorted({rank for _, rank in at}, reverse=True)
    return [
        "  mean rank".ljust(12) + "".join(f"{by:>17}" for by in orders),
        f"  {own:<10.4g}{f'{whole:>17.4f}' * len(orders)}  as trained",
        *(
            f"  {rank:<10.4g}" + "".join(f"{at[by, rank]:>17.4f}" for by in orders)
            for rank in ranks
        ),
    ]
