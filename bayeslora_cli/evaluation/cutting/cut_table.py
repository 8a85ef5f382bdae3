"""The table of metrics against kept rank: a finished run is cut, without training, and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.data.splits import Batches, check_tokens
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError
from bayeslora_cli.evaluation.cutting.gradients import gradient_averages, training_rows
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.request import EvaluationRequest, check_sampling, collect
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.methods.cutting import SINGULAR_VALUES, check_order, cut
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.objectives.objective import objective_of


@dataclass(frozen=True, kw_only=True, slots=True)
class CutRequest:
    """Which cuts of which run are measured on which rows."""

    path: Path
    ranks: tuple[float, ...]
    """Mean ranks of a matrix to cut to."""
    by: tuple[str, ...] = ()
    """Orders of the ranks (`methods.cutting`); (): the run's own criterion, if it has one, and
    singular values."""
    split: str | None = None
    data: str | None = None
    file: str | None = None
    sampling: Sampling | None = None
    """How to sample what a criterion keeps; None: only the mean is measured."""
    batch_size: int | None = None
    device: str = "auto"
    model: str | None = None
    trust_remote_code: bool = False
    verify: bool = False


def evaluate_cuts(asked: CutRequest) -> dict[str, Any]:
    """Measure a run at its own ranks and at each cut, at the posterior's mean and over samples.

    Returns:
        `run`, `task`, `split`, `selecting`, `matrices`; `whole`: the mean `rank` and the `metrics`
        by split without a cut; and `cuts`: for each `by` and `rank` the `kept` ranks of all
        matrices, and the `metrics`. With `asked.sampling` also `sampled`, the metrics over samples;
        of singular values only at the mean, since their directions have no sigma.
    Raises:
        UserError: the run cannot be cut so, or data or model is missing.
    """
    run = RunDir.open(asked.path)
    config = run.read_config(trust_remote_code=asked.trust_remote_code)
    config = replace(config, model=asked.model or config.model, data=asked.data or config.data)
    task = run.read_task()
    own = [config.criterion] if METHODS[config.method].allocates_ranks and config.criterion else []
    orders = asked.by or (*own, SINGULAR_VALUES)
    for by in orders:
        check_order(by, config)
    check_sampling(config, asked.sampling)
    request = EvaluationRequest(
        name=str(asked.path), run=run, config=config, task=task, split=asked.split,
        data=asked.data, file=asked.file,
    )  # fmt: skip
    examples = collect(request)
    objective = objective_of(task)
    training = training_rows(run, config, task, orders)
    network, tokenizer, posterior = load_run(
        run, config, objective, asked.device, verify=asked.verify
    )
    rows = {
        name: tokenise(found, tokenizer, config.max_length, objective, packed=network.packed)
        for name, found in examples.items()
    }
    if any(split.labels is None for split in rows.values()):
        raise DataError("--cut: the rows have no labels to measure on")
    check_tokens(network.module, config.model, rows.values())
    size = asked.batch_size or config.eval_batch_size
    batches = {name: Batches(r, size, network.bank.theta.device) for name, r in rows.items()}

    mean, mask = posterior.mean.clone(), network.bank.mask.clone()

    def metrics_of(found: Mapping[str, Predictive]) -> dict[str, dict[str, float]]:
        return {
            name: found[name].metrics(task.metrics, split.labels)
            for name, split in rows.items()
            if split.labels is not None
        }

    def measured(kept: Tensor | None) -> dict[str, Any]:
        """Measure the network; over samples too, if `kept` (n, r) are triplets of the posterior."""
        found = {"metrics": metrics_of(predict_at_mean(network, batches))}
        if asked.sampling is not None and kept is not None:
            posterior.mask.copy_(kept)
            sampled = predict_over_samples(network, posterior, batches, asked.sampling)
            posterior.mask.copy_(mask)
            found["sampled"] = metrics_of(sampled)
        return found

    gradients = gradient_averages(network, tokenizer, config, training)
    whole = {"rank": float(mask.sum() / len(mask)), **measured(mask)}
    cuts = []
    for by in orders:
        for rank in asked.ranks:
            found = cut(
                run, config, network, posterior, rank, by, gradients=gradients, option="--cut"
            )
            found.apply(network)
            own_triplets = None if by == SINGULAR_VALUES else found.mask
            cuts.append(
                {"by": by, "rank": rank, "kept": int(found.mask.sum()), **measured(own_triplets)}
            )
            network.bank.mean.copy_(mean)
            network.bank.mask.copy_(mask)
    return {
        "run": str(asked.path),
        "task": task.name,
        "split": asked.file or asked.split or "validation",
        "selecting": task.selecting,
        "matrices": len(mask),
        "whole": whole,
        "cuts": cuts,
    }
