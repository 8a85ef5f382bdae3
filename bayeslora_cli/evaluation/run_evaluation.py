"""Evaluates a finished run, at the posterior mean and over samples of the posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.errors import NonFiniteError, RunDirError, UserError
from bayeslora_cli.evaluation.evaluation import Evaluation, scores, scores_by_group
from bayeslora_cli.evaluation.forward_passes import (
    Sampling,
    batches_of,
    predict_at_mean,
    predict_over_samples,
)
from bayeslora_cli.evaluation.prediction_files import check_path, write_files
from bayeslora_cli.evaluation.predictive import Predictive
from bayeslora_cli.evaluation.request import (
    OUTSIDE,
    EvaluationRequest,
    check_kind,
    check_uncertainty,
    collect,
    other_task,
)
from bayeslora_cli.evaluation.run_loading import base_facts, load_model, load_run
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.backbones.loading import usable_length
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import TASKS as CHOICE_TASKS
from bayeslora_cli.tasks.sources.comparison_rows import check_data_is_read
from bayeslora_cli.tasks.sources.glue import TASKS
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tabular import custom_task
from bayeslora_cli.tasks.task import Examples, Task

_NO_LIMIT = 2**30  # tokens, for a backbone whose limit is not known


def evaluate_run(
    path: Path,
    *,
    split: str | None = None,
    task: str | None = None,
    choices: str | None = None,
    shots: int = 0,
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
    base_precision: str | None = None,
) -> Evaluation:
    """Read a finished run back and evaluate it, at its posterior mean and over samples.

    Args:
        split: train, validation (None), test or ood; MNLI's validation and test are two splits
            each. Of another task: None: `test`, or `validation` if its test rows have no answers.
        task: a task of multiple choice that is read instead of the run's own.
        choices: what of it is scored: letters, or whole answers; None: as the task has it.
        shots: number of its solved examples in front of each question.
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
        base_precision: of the frozen weights, which adapters are served on; None: as in training.
    Returns:
        The predictions, and in `facts`: `run`, `task`, `split`, the `precision` of the computation,
        the `base_precision` if it is another,
        `metrics` at the mean, by each split with labels, and `Objective.metric_facts`. With
        samples: `sampled`, metrics by split over the samples; `samples`, `temperature`, `seed`;
        `posterior`, the summary that training has written. With out-of-distribution rows: `ood`,
        with `source`, `rows`, and in `mean` and `sampled` the AUROC by split and kind of
        uncertainty. With `details`, of kinds that have any: `mean` and `sampled`, by split
        `Objective.details`. With `reliability`: `reliability`, with `mean` and `sampled`, bins by
        split. Of rows in groups: `groups`, with `mean` and `sampled`, by split and group the
        metrics and the number of `rows`. Of another task: `choices` and `shots`.
    Raises:
        UserError: there is no run, options have no effect, data is missing or has no labels, the
            model is another one, or there is no posterior.
    """
    if file is not None and task is not None:
        raise UserError(f"--task {task}: --eval-file {file} is read instead; leave one out")
    if predictions is not None:
        check_path(predictions)
    other = other_task(task, choices, shots, split, file)
    run = RunDir.open(path)
    config, own = run.read_config(trust_remote_code=trust_remote_code), run.read_task()
    if model is not None:
        config = replace(config, model=model)
    if base_precision is not None:
        config = replace(config, base_precision=base_precision)
    if other is not None:
        check_kind(str(path), own, other)
    if data is not None:
        if other is None and ood not in {*TASKS, *CHOICE_TASKS}:  # those rows are read from `data`
            check_data_is_read(config, data, file)
        config = replace(config, data=data)
    asked = EvaluationRequest(
        name=str(path),
        run=run,
        config=config,
        task=own if other is None else other,
        other=other,
        shots=shots,
        split=split,
        data=data,
        file=file,
        sampling=sampling,
        ood=ood,
        reliability=reliability,
        predictions=predictions,
        submission=submission,
    )
    check_uncertainty(asked)
    examples = collect(asked)
    loaded = load_run(run, config, objective_of(own), device, verify=verify)
    return _evaluated(asked, *loaded, examples, batch_size)


def evaluate_model(
    model: str,
    *,
    task: str | None = None,
    choices: str | None = None,
    shots: int = 0,
    split: str | None = None,
    data: str | None = None,
    file: str | None = None,
    precision: str = "fp32",
    base_precision: str | None = None,
    ood: str | None = None,
    reliability: bool = False,
    predictions: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate a pretrained causal language model that no run has trained.

    Args:
        model: hub name, directory or package, as for a training.
        task: a task of multiple choice; None: the rows of `file`.
        file: a user's rows, in one of the forms that a training takes.
        precision: of the computation: fp32, tf32 or bf16.
        base_precision: of the weights; None: that of the computation.
        choices, shots, split, data, ood, reliability, predictions, device, batch_size,
        trust_remote_code: as for `evaluate_run`.
    Returns:
        What `evaluate_run` returns; `run` in `facts` is the model.
    Raises:
        UserError: there is no such model or task, options have no effect, or data is missing.
        NonFiniteError: a prediction is not finite.
    """
    if (task is None) == (file is None):
        raise UserError(
            f"--model {model}: give --task NAME, one of {', '.join(CHOICE_TASKS)}, or --eval-file "
            "FILE with rows of your own, or a RUN that was trained from it"
        )
    if predictions is not None:
        check_path(predictions)
    other = other_task(task, choices, shots, split, file)
    if other is None and data is not None and ood not in TASKS:
        raise UserError(f"--data {data}: --eval-file {file} is read instead; leave one out")
    if other is not None:
        found: Task = other
    else:
        assert file is not None
        table = read_table(file, "--eval-file", split="validation")
        found = custom_task(table, text_columns=None, label_column=None)
        if OBJECTIVES[found.objective].head:
            raise UserError(
                f"--eval-file {file}: its rows are labelled texts, which need a run of their own; "
                "a pretrained model predicts only text"
            )
    config = RunConfig(
        task=found.name,
        model=model,
        precision=precision,
        base_precision=base_precision,
        method="lora",
        optimizer="adamw",
        criterion=None,
        target_rank=1,
        init_rank=1,
        trust_remote_code=trust_remote_code,
        data=data,
        train_file=file,
    )
    asked = EvaluationRequest(
        name=model,
        run=None,
        config=config,
        task=found,
        other=other,
        shots=shots,
        split=split,
        data=data,
        file=file,
        ood=ood,
        reliability=reliability,
        predictions=predictions,
    )
    check_uncertainty(asked)
    examples = collect(asked)
    network, tokenizer = load_model(config, objective_of(found), device)
    try:
        return _evaluated(asked, network, tokenizer, None, examples, batch_size)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"--model {model}: a prediction is not finite: its weights are damaged, or numbers of "
            f"--precision {precision} do not hold what it computes"
        ) from error


def _evaluated(
    asked: EvaluationRequest,
    network: Network,
    tokenizer: Any,
    kept: Posterior | None,
    examples: Mapping[str, Examples],
    batch_size: int | None,
) -> Evaluation:
    """Evaluate a loaded model on rows.

    Args:
        examples: what `collect` returned.
        batch_size: examples per forward pass; None: as in training.
    """
    config = asked.config
    if asked.other is not None or asked.run is None:
        # no length was chosen for these rows: that of a training says nothing of other prompts
        limit = usable_length(config.model, tokenizer, trust_remote_code=config.trust_remote_code)
        config = replace(config, max_length=limit or _NO_LIMIT)
    network.objective = objective_of(asked.task)
    rows, predictives = predict(
        network, tokenizer, kept, config, examples, asked.sampling, batch_size
    )
    result = {
        "run": asked.name,
        "task": asked.task.name,
        **_rows_facts(asked, examples),
        "precision": config.precision,
        **base_facts(config),
        **scores(asked, rows, predictives),
        **scores_by_group(asked, examples, rows, predictives),
        **objective_of(asked.task).metric_facts,
        **_run_facts(asked),
    }
    write_files(asked, rows, predictives)
    inside = {
        at: {name: found for name, found in by_split.items() if name != OUTSIDE}
        for at, by_split in predictives.items()
    }
    return Evaluation(
        facts=result,
        labels={n: y for n in inside["mean"] if (y := rows[n].labels) is not None},
        at_mean=inside["mean"],
        over_samples=inside.get("sampled"),
        examples={name: rows for name, rows in examples.items() if name != OUTSIDE},
    )


def _rows_facts(asked: EvaluationRequest, examples: Mapping[str, Examples]) -> dict[str, Any]:
    """Say which rows were evaluated and, of another task, in which form."""
    if asked.other is None:
        return {"split": asked.file or asked.split or "validation"}
    (split,) = (name for name in examples if name != OUTSIDE)
    return {"split": split, "choices": asked.other.form, "shots": asked.shots}


def _run_facts(asked: EvaluationRequest) -> dict[str, Any]:
    """Say how a run's posterior was sampled, and what a language model costs."""
    if asked.run is None:
        return {}
    found, trained = {}, asked.run.read_result()
    if asked.sampling is not None:
        found = {**asdict(asked.sampling), "posterior": trained.get("posterior")}
    if "model" in trained.get("cost", {}):  # elsewhere the run's own result says it
        found["cost"] = trained["cost"]
    return found


def predict(
    network: Network,
    tokenizer: Any,
    kept: Posterior | None,
    config: RunConfig,
    examples: Mapping[str, Examples],
    sampling: Sampling | None = None,
    batch_size: int | None = None,
) -> tuple[dict[str, TokenisedSplit], dict[str, dict[str, Predictive]]]:
    """Predict rows of text with a run's network.

    Args:
        network, tokenizer: the run or the model, in memory.
        kept: the run's posterior; None: there is no run.
        examples: by split.
        sampling: None: at the mean only.
        batch_size: examples per forward pass; None: as in training.
    Returns:
        The rows' tokens by split; the predictions: `mean`, and `sampled` if asked for, by split.
    Raises:
        RunDirError: samples of a run whose file has no sigma.
    """
    rows, batches = batches_of(network, tokenizer, config, examples, batch_size)
    found = {"mean": predict_at_mean(network, batches)}
    if sampling is not None:
        if kept is None or not kept.can_sample:
            raise RunDirError("the run's posterior is corrupt: it has no sigma to sample with")
        found["sampled"] = predict_over_samples(network, kept, batches, sampling)
    return rows, found
