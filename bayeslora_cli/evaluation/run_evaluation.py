"""Evaluates a finished run, at the posterior mean and over samples of the posterior."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.splits import Batches, check_tokens
from bayeslora_cli.data.tokenization import TokenisedSplit, tokenise, truncation_notice
from bayeslora_cli.errors import DataError, RunDirError, UserError
from bayeslora_cli.evaluation.evaluation import Evaluation
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.prediction_files import (
    Predicted,
    check_path,
    write_predictions,
    write_submission,
)
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.run_loading import LoadedRun, load_run, of_the_training, split_names
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.calibration import auroc, reliability_bins
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.comparison_rows import check_data_is_read, load_file, load_outside
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")

_OUTSIDE = "--ood"  # not the name of a split


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRequest:
    """A finished run and the requested evaluation; the fields are `evaluate_run`'s arguments."""

    run: RunDir
    config: RunConfig
    task: Task
    split: str | None
    data: str | None
    file: str | None
    sampling: Sampling | None
    ood: str | None
    reliability: bool
    predictions: Path | None
    submission: Path | None

    @property
    def outside(self) -> str | None:
        """Out-of-distribution rows: those that the user asked for, or with samples those of the
        task's own split; None: there are none."""
        own_split = self.file is None and self.split != "ood"
        if self.ood is None and self.sampling is not None and own_split:
            return next(iter(self.task.ood_splits), None)
        return self.ood


def evaluate_run(
    path: Path,
    *,
    split: str | None = None,
    data: str | None = None,
    file: str | None = None,
    sampling: Sampling | None = None,
    ood: str | None = None,
    reliability: bool = False,
    predictions: Path | None = None,
    submission: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    model: str | None = None,
    verify: bool = False,
) -> Evaluation:
    """Read a finished run back and evaluate it, at its posterior mean and over samples.

    Args:
        split: train, validation (None), test or ood; MNLI's validation and test are two splits
            each.
        data: directory of the data; None: the one that the run was trained on.
        file: a user's rows instead of a split, with the columns of the run's task; predictions
            need no labels.
        sampling: how to sample the posterior; None: only the mean.
        ood: out-of-distribution rows, whose uncertainty is compared with the split's
            (`comparison_rows.load_outside`); None: with samples, those of the task's own split, if
            it has one.
        reliability: whether to count the bins of a reliability diagram.
        predictions: file for one row per example (`prediction_files.write_predictions`): the
            samples' average, or without samples the prediction at the mean.
        submission: directory for GLUE's own format (`prediction_files.write_submission`), likewise.
        trust_remote_code: run Python code that comes with the model.
        model: the new place of the backbone, whose content is checked; None: where it was.
        verify: hash the backbone's weights anew, whatever is remembered of them.
    Returns:
        The predictions, and in `facts`: `run`, `task`, `split`, the `precision` of the computation,
        `metrics` at the mean, by each split with labels, and `Objective.metric_facts`. With
        samples: `sampled`, metrics by split over the samples; `samples`, `temperature`, `seed`;
        `posterior`, the summary that training has written. With out-of-distribution rows: `ood`,
        with `source`, `rows`, and in `mean` and `sampled` the AUROC by split and kind of
        uncertainty. With `reliability`: `reliability`, with `mean` and `sampled`, bins by split.
    Raises:
        UserError: there is no run, options have no effect, data is missing or has no labels, the
            model is another one, or there is no posterior.
    """
    if file is not None and split is not None:
        raise UserError(f"--split {split}: --eval-file {file} is read instead; leave one out")
    if predictions is not None:
        check_path(predictions)
    run = RunDir.open(path)
    config, task = run.read_config(trust_remote_code=trust_remote_code), run.read_task()
    if model is not None:
        config = replace(config, model=model)
    if data is not None:
        if ood not in TASKS:  # GLUE's rows are read from `data`
            check_data_is_read(config, data, file)
        config = replace(config, data=data)
    asked = EvaluationRequest(
        run=run,
        config=config,
        task=task,
        split=split,
        data=data,
        file=file,
        sampling=sampling,
        ood=ood,
        reliability=reliability,
        predictions=predictions,
        submission=submission,
    )
    _check_uncertainty(asked)
    examples = _collect(asked)
    loaded = load_run(run, config, objective_of(task), device, verify=verify)
    rows, predictives = predict(loaded, run, config, examples, sampling, batch_size)
    result = {
        "run": str(path),
        "task": task.name,
        "split": file or split or "validation",
        "precision": config.precision,
        **_score(asked, rows, predictives),
        **objective_of(task).metric_facts,
    }
    if sampling is not None:
        result |= {**asdict(sampling), "posterior": run.read_result().get("posterior")}
    _write(asked, rows, predictives)
    inside = {
        at: {name: found for name, found in by_split.items() if name != _OUTSIDE}
        for at, by_split in predictives.items()
    }
    return Evaluation(
        facts=result,
        labels={n: y for n in inside["mean"] if (y := rows[n].labels) is not None},
        at_mean=inside["mean"],
        over_samples=inside.get("sampled"),
    )


def check_sampling(config: RunConfig, sampling: Sampling | None) -> None:
    """Check that a run's posterior can be sampled as requested.

    Raises:
        UserError: its optimizer finds no posterior, or a temperature below 0.
    """
    if sampling is None:
        return
    if not OPTIMIZERS[config.optimizer].posterior:
        raise UserError(
            f"--samples {sampling.samples}: the run was trained with {config.optimizer}, which "
            "finds a point and no posterior to sample; train with --optimizer ivon"
        )
    if not 0 <= sampling.temperature < math.inf:
        raise UserError(f"--temperature {sampling.temperature}: give a number of 0 or more")


def _check_uncertainty(asked: EvaluationRequest) -> None:
    """Check, before anything is loaded, that the run has what the options ask for."""
    sampling = asked.sampling
    check_sampling(asked.config, sampling)
    objective = objective_of(asked.task)
    predicts = objective.entry.predicts
    if asked.reliability and not objective.has_confidence:
        raise UserError(
            f"--reliability: {asked.task.name} predicts {predicts}, which has no confidence"
        )
    several = sampling is not None and sampling.samples > 1
    if asked.ood is not None and not several and not objective.probabilistic:
        raise UserError(
            f"--ood {asked.ood}: {predicts}'s uncertainty is the samples' variance; give "
            "--samples 2 or more"
        )


def _collect(asked: EvaluationRequest) -> dict[str, Examples]:
    """Read the rows by split, as text; out-of-distribution rows under `_OUTSIDE`."""
    task, config = asked.task, asked.config
    if asked.file is None:
        given = ["--train-file", "--eval-file", *(["--data"] if asked.data is None else [])]
        with of_the_training(asked.run, *given):
            splits = split_names(task, asked.split or "validation")
            examples = load_examples(config, splits, task=task)[1]
    else:
        examples = load_file(asked.file, task, config.loss_on)
    of_tests = task.name in TASKS and examples.keys() <= set(task.test_splits)
    if asked.submission is not None and not of_tests:
        raise DataError(
            f"--submission {asked.submission}: only for GLUE's tasks, with --split test"
        )
    unlabelled_will_do = (asked.predictions or asked.submission or asked.ood) is not None
    for name, found in examples.items():
        beginning = f"{name} of {task.name} has no labels"
        if found.labels is None and asked.reliability:
            raise DataError(f"--reliability: {beginning} to be right or wrong about; leave it out")
        if found.labels is None and not unlabelled_will_do:
            raise DataError(
                f"{beginning} to score; --predictions FILE writes what the run predicts"
            )
    if asked.outside is None:
        return examples
    outside = load_outside(asked.outside, config, task, own_rows=asked.file is None)
    return {**examples, _OUTSIDE: outside}


def predict(
    loaded: LoadedRun,
    run: RunDir,
    config: RunConfig,
    examples: Mapping[str, Examples],
    sampling: Sampling | None = None,
    batch_size: int | None = None,
) -> tuple[dict[str, TokenisedSplit], dict[str, dict[str, Predictive]]]:
    """Predict rows of text with a run's network.

    Args:
        loaded: the run, in memory.
        examples: by split.
        sampling: None: at the mean only.
        batch_size: examples per forward pass; None: as in training.
    Returns:
        The rows' tokens by split; the predictions: `mean`, and `sampled` if asked for, by split.
    Raises:
        RunDirError: samples of a run whose file has no sigma.
    """
    network, tokenizer, kept = loaded
    rows = {
        name: tokenise(
            found, tokenizer, config.max_length, network.objective, packed=network.packed
        )
        for name, found in examples.items()
    }
    if notice := truncation_notice(rows, config.max_length):
        logger.warning("%s", notice)
    check_tokens(network.module, config.model, rows.values())
    size = batch_size or config.eval_batch_size
    batches = {name: Batches(r, size, network.bank.theta.device) for name, r in rows.items()}
    found = {"mean": predict_at_mean(network, batches)}
    if sampling is not None:
        if not kept.can_sample:
            raise RunDirError(f"{run.posterior} is corrupt: it has no sigma to sample with")
        found["sampled"] = predict_over_samples(network, kept, batches, sampling)
    return rows, found


def _score(
    asked: EvaluationRequest,
    rows: Mapping[str, TokenisedSplit],
    predictives: Mapping[str, Mapping[str, Predictive]],
) -> dict[str, Any]:
    """Compute metrics, reliability and AUROCs as `evaluate_run` returns them."""
    result: dict[str, Any] = {}
    for at, by_split in predictives.items():
        inside = {name: found for name, found in by_split.items() if name != _OUTSIDE}
        labelled = {n: (p, y) for n, p in inside.items() if (y := rows[n].labels) is not None}
        result["metrics" if at == "mean" else at] = {
            name: predictive.metrics(asked.task.metrics, labels)
            for name, (predictive, labels) in labelled.items()
        }
        if asked.reliability:
            result.setdefault("reliability", {})[at] = {
                name: reliability_bins(predictive.values, labels)
                for name, (predictive, labels) in labelled.items()
            }
        if _OUTSIDE in by_split:
            outside = {"source": asked.outside, "rows": len(rows[_OUTSIDE])}
            result.setdefault("ood", outside)[at] = {
                name: _aurocs(predictive, by_split[_OUTSIDE], sampled=at == "sampled")
                for name, predictive in inside.items()
            }
    return result


def _aurocs(inside: Predictive, outside: Predictive, *, sampled: bool) -> dict[str, float]:
    """Return for each kind of uncertainty the AUROC of rows from outside against rows inside."""
    others = outside.uncertainty(sampled=sampled)
    return {
        kind: auroc(values, others[kind])
        for kind, values in inside.uncertainty(sampled=sampled).items()
    }


def _write(
    asked: EvaluationRequest,
    rows: Mapping[str, TokenisedSplit],
    predictives: Mapping[str, Mapping[str, Predictive]],
) -> None:
    """Write the predictions, averaged over samples if there are any, to the requested files."""
    at = "sampled" if "sampled" in predictives else "mean"
    predicted = {
        name: Predicted(
            values=found.values.float(),
            labels=rows[name].labels,
            extra={k: v.float() for k, v in found.uncertainty(sampled=at == "sampled").items()},
        )
        for name, found in predictives[at].items()
        if name != _OUTSIDE
    }
    if asked.predictions is not None:
        write_predictions(asked.predictions, asked.task, predicted)
    if asked.submission is not None:
        write_submission(asked.submission, TASKS[asked.task.name], predicted)
