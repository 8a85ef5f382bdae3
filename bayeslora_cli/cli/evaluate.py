"""`bayeslora eval`: evaluates a run or a model, or prints the table of several runs' results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora_cli.api.cuts import cut_table
from bayeslora_cli.api.models import evaluate as evaluate_model
from bayeslora_cli.api.reading.results import holds_runs
from bayeslora_cli.api.run import Run
from bayeslora_cli.cli.help.shared_options import (
    NEW_PLACE,
    AsJson,
    BasePrecision,
    BatchSize,
    Device,
    SampleSeed,
    Temperature,
    TrustRemoteCode,
    Verify,
    refuse,
    typed_names,
)
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.cli.reading.table import (
    AsCsv,
    At,
    Latex,
    Markdown,
    Paired,
    ReferenceFile,
    print_table,
)
from bayeslora_cli.config.catalogue import CHOICE_TASKS, PRECISIONS
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.figure_file import check_figure
from bayeslora_cli.reports.figures.reliability_diagram import (
    OPTION,
    WITHOUT,
    save_diagram,
    text_diagram,
)
from bayeslora_cli.reports.run_summary import cut_text, evaluation_text
from bayeslora_cli.reports.terminal_text import say, say_path

_OF_TABLE = {"at", "markdown", "latex", "as_csv", "reference", "paired"}
_OF_RUNS = _OF_TABLE | {"samples", "temperature", "seed", "submission", "verify"}


def evaluate(
    ctx: typer.Context,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Directory of a finished run; with several, or one that holds runs: a table. "
            "Without one, the pretrained --model is evaluated.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or ood (default: validation).")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another task, on which a language model chooses among answers: "
            f"{', '.join(CHOICE_TASKS)} (split: test, or validation if test has no answers).",
        ),
    ] = None,
    shots: Annotated[
        int,
        typer.Option(min=0, help="Solved examples in front of each question of --task."),
    ] = 0,
    choices: Annotated[
        str | None,
        typer.Option(
            help="What --task scores: answers, or letters that the prompt lists (default: letters "
            "for mmlu, else answers).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Directory of the data (default: the one that the run was trained on)."),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option(help="Your own rows instead: a file or hub data set, as for train."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Predict over this many samples of the posterior as well. A score's NLL is under "
            "the samples' variance and the observation's, 1/2, which the squared error stands for.",
        ),
    ] = None,
    temperature: Temperature = None,
    seed: SampleSeed = None,
    ood: Annotated[
        str | None,
        typer.Option(
            metavar="TASK|FILE",
            help="Rows to tell from the split's by their uncertainty: the run's own split ood "
            "(the default for demo, with --samples), another task, or a file with the run's text "
            "columns.",
        ),
    ] = None,
    reliability: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw a reliability diagram here and a small one on the terminal: FILE.png, .svg "
            "or .pdf; - for the terminal only.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Write one row per example: FILE.csv, .tsv or .jsonl, over samples if there are "
            "any. No labels needed."
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Directory for the files that gluebenchmark.com takes (--split test)."),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            metavar="RANKS",
            help="Cut the run to these mean ranks of a matrix, as 2,1,0.5, without training, and "
            "print the metrics at each.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ORDERS",
            help="By what --cut orders the ranks of all matrices: singular-values of the products, "
            "or criteria (default: the run's own, and singular-values).",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"{NEW_PLACE} Without a run: the model to evaluate.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, tf32 or bf16, of a --model without a run (default: fp32; a run has its "
            "own)."
        ),
    ] = None,
    base_precision: BasePrecision = None,
    verify: Verify = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    at: At = None,
    markdown: Markdown = False,
    latex: Latex = False,
    as_csv: AsCsv = False,
    reference: ReferenceFile = None,
    paired: Paired = None,
) -> None:
    """Evaluate a finished run at its posterior mean and over samples, or write what it predicts.

    Without a run, --model is evaluated as it is, on --task or on the rows of --eval-file.

    Of several runs it prints what `bayeslora table` prints, and takes that command's options.
    """
    set_up_logging(quiet=False, verbose=False)
    typed = typed_names(ctx)
    if not runs and model is None:
        raise UserError("RUN: name a run's directory, or a pretrained model by --model")
    if runs and precision is not None:
        raise UserError(f"--precision {precision}: it is for a --model without a run; leave it out")
    if runs and (len(runs) > 1 or holds_runs(runs[0]) or typed & _OF_TABLE):
        refuse(
            typed - _OF_TABLE - {"runs", "as_json"},
            "it is for evaluating one run; leave it out for the table of several runs, which shows "
            "the results they have",
        )
        forms = {"json": as_json, "markdown": markdown, "latex": latex, "csv": as_csv}
        print_table(runs, at=at, forms=forms, reference=reference, paired=paired)
        return
    if cut is not None or by is not None:
        _print_cuts(ctx, runs, cut, by, as_json=as_json)
        return
    figure = None if reliability == Path("-") else reliability
    if figure is not None:
        check_figure(figure, OPTION, WITHOUT)
    asked: dict[str, Any] = {
        "split": split,
        "task": task,
        "choices": choices,
        "shots": shots,
        "data": data,
        "file": eval_file,
        "ood": ood,
        "reliability": reliability is not None,
        "predictions": predictions,
        "batch_size": batch_size,
        "base_precision": base_precision,
    }
    if runs:
        opened = Run(
            runs[0], device=device, trust_remote_code=trust_remote_code, model=model, verify=verify
        )
        evaluation = opened.evaluate(
            samples=samples, temperature=temperature, seed=seed, submission=submission, **asked
        )
    else:
        assert model is not None
        refuse(typed & _OF_RUNS, "it is for a run; name one, or leave it out")
        evaluation = evaluate_model(
            model,
            precision=precision or PRECISIONS[0],
            device=device,
            trust_remote_code=trust_remote_code,
            **asked,
        )
    found = evaluation.to_json()
    note = (found.get("posterior") or {}).get("note")
    if note is not None:
        logger.warning("%s", note)
    if figure is not None:
        name = "/".join(runs[0].resolve().parts[-2:]) if runs else str(model)
        save_diagram(figure, found["reliability"], name)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    _print_evaluation(found)
    for path in (figure, predictions, submission):
        if path is not None:
            say_path(path)


def _print_evaluation(found: Mapping[str, Any]) -> None:
    """Print metrics and reliability, those that were computed."""
    if found["metrics"] or "ood" in found:
        say(evaluation_text(found))
    if "reliability" in found:
        say(text_diagram(found["reliability"]))


_OF_CUTS = {
    "runs", "cut", "by", "split", "data", "eval_file", "batch_size", "device", "model",
    "samples", "temperature", "seed", "trust_remote_code", "verify", "as_json",
}  # fmt: skip


def _print_cuts(
    ctx: typer.Context, runs: list[Path] | None, cut: str | None, by: str | None, *, as_json: bool
) -> None:
    """Print the table of metrics against kept rank."""
    refuse(typed_names(ctx) - _OF_CUTS, "it has no effect on --cut; leave it out")
    if cut is None or not runs:
        missing = "a finished RUN" if cut is not None else "--cut RANKS, such as --cut 2,1,0.5"
        raise UserError(f"--by and --cut cut a run's ranks; give {missing}")
    try:
        ranks = [float(part) for part in cut.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--cut {cut}: give numbers, such as 2,1,0.5") from error
    orders = [part.strip() for part in (by or "").split(",") if part.strip()]
    given = {name: ctx.params[name] for name in _OF_CUTS - {"runs", "cut", "by", "as_json"}}
    found = cut_table(runs[0], ranks, orders, file=given.pop("eval_file"), **given)
    say(json.dumps(found, allow_nan=False) if as_json else cut_text(found))
