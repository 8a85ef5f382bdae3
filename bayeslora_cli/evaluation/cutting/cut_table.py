"""The table of metrics against kept rank: a finished run is cut, without training, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.errors import DataError
from bayeslora_cli.evaluation.cutting.gradients import gradient_averages, training_rows
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    batches_of,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.request import EvaluationRequest, check_sampling, collect
from bayeslora_cli.evaluation.run_loading import load_run
from bayeslora_cli.methods.cutting import SINGULAR_VALUES, check_order, cut
from bayeslora_cli.methods.network import Network
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measurement:
    """Measures a network at its present parameters, always on the same rows."""

    network: Network
    posterior: Posterior
    names: Sequence[str]
    """Metrics."""
    labels: Mapping[str, Tensor]
    """By split."""
    batches: Mapping[str, Batches]
    """By split."""
    sampling: Sampling | None

    def __call__(self, kept: Tensor | None) -> dict[str, Any]:
        """Return the `metrics` at the mean and, if `kept` (n, r) are the posterior's triplets to
        sample, those that are `sampled`."""
        found = {"metrics": self._metrics(predict_at_mean(self.network, self.batches))}
        if self.sampling is not None and kept is not None:
            mask = self.posterior.mask.clone()
            self.posterior.mask.copy_(kept)
            found["sampled"] = self._metrics(
                predict_over_samples(self.network, self.posterior, self.batches, self.sampling)
            )
            self.posterior.mask.copy_(mask)
        return found

    def _metrics(self, found: Mapping[str, Predictive]) -> dict[str, dict[str, float]]:
        return {name: found[name].metrics(self.names, own) for name, own in self.labels.items()}


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
    rows, batches = batches_of(network, tokenizer, config, examples, asked.batch_size)
    labels = {name: split.labels for name, split in rows.items() if split.labels is not None}
    if len(labels) < len(rows):
        raise DataError("--cut: the rows have no labels to measure on")
    measure = _Measurement(
        network=network, posterior=posterior, names=task.metrics, labels=labels, batches=batches,
        sampling=asked.sampling,
    )  # fmt: skip
    gradients = gradient_averages(network, tokenizer, config, training)
    mean, mask = posterior.mean.clone(), network.bank.mask.clone()
    whole = {"rank": float(mask.sum() / len(mask)), **measure(mask)}
    cuts = []
    for by, rank in product(orders, asked.ranks):
        found = cut(run, config, network, posterior, rank, by, gradients=gradients, option="--cut")
        found.apply(network)
        measured = measure(None if by == SINGULAR_VALUES else found.mask)
        cuts.append({"by": by, "rank": rank, "kept": int(found.mask.sum()), **measured})
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
