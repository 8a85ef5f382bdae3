"""Run directories with made-up allocations, for what reads them: no model is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from bayeslora_cli.reports.ranks.run_groups import Group
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport, kinds_of, layer_of

ENCODER = (
    "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip
DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def chance(*numbers):
    """A number in [0, 1) that looks random and is the same everywhere."""
    value = 0
    for number in numbers:
        value = (value * 31 + number + 1) * 2654435761 % 2**32
        value ^= value >> 15
    return value / 2**32


def score(matrix, triplet, seed):
    """From 1 to 1000; the matrix counts for more than triplet and seed, which count alike."""
    return 10 ** (2 * chance(matrix) + chance(matrix, triplet, seed))


def names(layers, kinds=ENCODER, pooler=True):
    inside = [f"encoder.layer.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    return inside + ["pooler.dense"] * pooler


def allocation(layer_names, *, seed=0, init_rank=3, share=2 / 3, criterion="snr", step=99):
    """A report that keeps the `share` of triplets that score most."""
    scores = [
        [score(m, t, seed) for t in range(init_rank)] for m, _ in enumerate(layer_names)
    ]  # (matrices, init_rank)
    flat = sorted((s for row in scores for s in row), reverse=True)
    budget = round(share * len(flat))
    cut = flat[budget - 1] if budget else float("inf")
    matrices = tuple(
        MatrixReport(
            name=name, layer=layer_of(name), kind=kind, in_features=8, out_features=16,
            init_rank=init_rank, rank=sum(s >= cut for s in row), kept=tuple(s >= cut for s in row),
            scores=tuple(row),
        )
        for name, kind, row in zip(layer_names, kinds_of(layer_names), scores, strict=True)
    )  # fmt: skip
    return RankReport(step=step, budget=budget, criterion=criterion, matrices=matrices)


def history_lines(layer_names, *, steps=range(20, 61, 4), share=2 / 3, **options):
    """Lines of ranks.jsonl: the budget falls from all triplets to the `share`, ever slower."""
    for step in steps:
        left = (1 - (step - steps[0] + 1) / (steps[-1] - steps[0] + 1)) ** 3
        at = allocation(layer_names, share=share + (1 - share) * left, **options)
        yield {
            "step": step,
            "budget": at.budget,
            "ranks": {matrix.name: matrix.rank for matrix in at.matrices},
        }


def constant(report):
    """The same as a method writes it that allocates nothing."""
    matrices = (replace(m, scores=None) for m in report.matrices)
    return replace(report, criterion=None, matrices=tuple(matrices))


def write_run(path, report, history=(), result=None, config=""):
    """The files of a finished run that say where its ranks went; `config` is TOML."""
    run = RunDir(Path(path))
    run.path.mkdir(parents=True)
    run.config.write_text(config)
    run.task.write_text("{}")
    write_json(run.ranks, report.to_json())
    lines = [json.dumps(line) + "\n" for line in history]
    if lines:
        run.ranks_history.write_text("".join(lines))
    run.finish(result or {})
    return run


def write_seeds(path, layer_names, seeds=(2021, 2022, 2023), **options):
    """A directory of runs that differ in their seed."""
    for seed in seeds:
        write_run(
            path / f"seed-{seed}",
            allocation(layer_names, seed=seed, **options),
            history_lines(layer_names, seed=seed, **options),
        )
    return path


def group(reports):
    """Runs that are nowhere."""
    runs = tuple(RunDir(Path(f"run-{i}")) for i in range(len(reports)))
    return Group(label="runs", runs=runs, reports=tuple(reports))


def with_kept(report, kept):
    """The same matrices with other triplets kept: (matrices, init_rank) of booleans."""
    matrices = (
        replace(m, kept=tuple(k), rank=sum(k)) for m, k in zip(report.matrices, kept, strict=True)
    )
    return replace(report, budget=sum(map(sum, kept)), matrices=tuple(matrices))


_KEPT = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=13, max_size=13)
# reports of the same matrices with any triplets kept
PRUNED_REPORTS = _KEPT.map(lambda k: with_kept(allocation(names(2)), k))
