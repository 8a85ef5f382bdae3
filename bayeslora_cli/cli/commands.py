"""The commands on finished runs: parse, call one function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bayeslora_cli.cli import options as o
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.cli.results_command import is_collection, print_table
from bayeslora_cli.errors import UserError
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.reports.figures.figure_file import check_figure
from bayeslora_cli.reports.figures.reliability_diagram import (
    OPTION,
    WITHOUT,
    save_diagram,
    text_diagram,
)
from bayeslora_cli.reports.run_summary import side_by_side

_FORM, _CHECK, _WHERE = "What to write", "How to check it", "Where to"  # panels of export's help


def evaluate(
    runs: o.RunPaths,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or ood (default: validation).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Directory of the data (default: the one that the run was trained on)."),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option(help="Rows of one's own instead: a file or hub data set, as for train."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Predict over this many samples of the posterior as well. A score's NLL is under "
            "the samples' variance and the observation's, 1/2, which the squared error stands for.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Factor of the posterior's variance, with --samples (default: 1)."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of the samples, with --samples (default: 0)."),
    ] = None,
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
            "or .pdf; - for the terminal alone.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Write a row an example: FILE.csv, .tsv or .jsonl, over the samples if there are "
            "any. No labels needed."
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Directory for the files that gluebenchmark.com takes (--split test)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a forward pass (default: as in training).")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code that comes with the model."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    at: o.At = None,
    markdown: o.Markdown = False,
    latex: o.Latex = False,
    as_csv: o.AsCsv = False,
    reference: o.ReferenceFile = None,
    paired: o.Paired = None,
) -> None:
    """Evaluate a finished run at its posterior mean and over samples, or write what it predicts.

    Of several runs: the table of their results by method, as the paper has it. For that nothing is
    evaluated anew.
    """
    given = locals()
    set_up_logging(quiet=False, verbose=False)
    forms = {"json": as_json, "markdown": markdown, "latex": latex, "csv": as_csv}
    of_table = {"at", "markdown", "latex", "as_csv", "reference", "paired"}
    if len(runs) > 1 or is_collection(runs[0]) or any(given[name] for name in of_table):
        anew = given.keys() - of_table - {"runs", "as_json"}
        typed = sorted(n for n in anew if given[n] not in (None, False, "auto"))
        if typed:
            raise UserError(
                f"--{typed[0].replace('_', '-')}: it is of one run evaluated anew; leave it out "
                "for the table of several runs, which is of their results"
            )
        print_table(runs, at=at, forms=forms, reference=reference, paired=paired)
        return
    (run,) = runs
    figure = None if reliability == Path("-") else reliability
    if figure is not None:
        check_figure(figure, OPTION, WITHOUT)
    for name, value in (("--temperature", temperature), ("--seed", seed)):
        if samples is None and value is not None:
            raise UserError(f"{name} {value}: it is of samples; give --samples S as well")
    from bayeslora_cli.evaluation.forward_passes import Sampling, describe
    from bayeslora_cli.evaluation.run_evaluation import evaluate_run

    sampling = None
    if samples is not None:
        sampling = Sampling(samples, 1.0 if temperature is None else temperature, seed or 0)
    found = evaluate_run(
        run,
        split=split,
        data=data,
        file=eval_file,
        sampling=sampling,
        ood=ood,
        reliability=reliability is not None,
        predictions=predictions,
        submission=submission,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
    note = (found.get("posterior") or {}).get("note")
    if note is not None:
        logger.warning("%s", note)
    if figure is not None:
        save_diagram(figure, found["reliability"], "/".join(run.resolve().parts[-2:]))
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    if found["metrics"] or "ood" in found:
        simple = found.keys().isdisjoint(("sampled", "ood"))
        print(describe(found["metrics"]) if simple else side_by_side(found))
    if reliability is not None:
        print(text_diagram(found["reliability"]))
    for path in (figure, predictions, submission):
        if path is not None:
            print(path)


def export(
    run: o.RunPath,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="adalora, lora, merged, onnx or quantized.", rich_help_panel=_FORM
        ),
    ],
    uniform_rank: Annotated[
        bool,
        typer.Option(
            "--uniform-rank",
            help="lora: pad all matrices with zeros to one rank and one alpha, for servers that "
            "know no patterns.",
            rich_help_panel=_FORM,
        ),
    ] = False,
    target_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prune further to this mean rank of a matrix, by the run's scores and without "
            "training; prints the metrics before and after, in fp32.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    check_rows: Annotated[
        int, typer.Option(min=1, help="Rows to compare logits on.", rich_help_panel=_CHECK)
    ] = 32,
    check_inputs: Annotated[
        str,
        typer.Option(
            help="data: rows of the validation split; random: random tokens, where the data is "
            "not at hand.",
            rich_help_panel=_CHECK,
        ),
    ] = "data",
    data: Annotated[
        str | None,
        typer.Option(
            help="Directory of the data (default: the one that the run was trained on).",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    eval_file: Annotated[
        str | None,
        typer.Option(
            help="Rows of one's own instead: a file or hub data set, as for train.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N or auto.", rich_help_panel=_CHECK)
    ] = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code that comes with the model.",
            rich_help_panel=_CHECK,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write (default: RUN/export/FORMAT, and -rR after pruning to R).",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export.", rich_help_panel=_WHERE)
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload to this repository of the Hugging Face hub when all else is done; it is "
            "made where there is none, as visible as the account's default.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest.", rich_help_panel=_WHERE)
    ] = False,
) -> None:
    """Write a finished run in a form for elsewhere.

    The export is reopened without bayeslora before it appears, and its logits
    are compared with the run's, in fp32: they may differ by 1e-5 (onnx: 1e-4)
    of the largest logit, or of 1 where all logits are smaller. Integer codes
    (quantized) are read back by bayeslora, and must give the run's logits to
    the bit.
    A wrong export leaves nothing behind.
    The last line printed is the export's directory.
    """
    set_up_logging(quiet=False, verbose=False)
    from bayeslora_cli.export.exporter import describe_export, export_run

    options = ExportOptions(
        format=form,
        uniform_rank=uniform_rank,
        target_rank=target_rank,
        check_rows=check_rows,
        check_inputs=check_inputs,
        data=data,
        file=eval_file,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    directory, manifest = export_run(
        run, options, output=output, overwrite=overwrite, push_to_hub=push_to_hub
    )
    if as_json:
        print(json.dumps({"export": str(directory), **manifest}, allow_nan=False))
        return
    for line in describe_export(manifest):
        print(line)
    print(directory)


def inspect_ranks(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Run directories, or directories that hold runs at any depth: the mean over those "
            "that differ in the seed alone, a heatmap for each of the others.",
        ),
    ],
    compare: Annotated[
        bool,
        typer.Option("--compare", help="The first RUN minus the second, each a run or many."),
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="When each matrix lost its ranks.")
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="The distribution of the scores and the threshold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print a table, a row a matrix, or a change, or a triplet.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write a figure as well: FILE.png, .svg or .pdf (needs matplotlib)."),
    ] = None,
) -> None:
    """Show where the ranks of finished runs went: kinds of matrices by layers."""
    set_up_logging(quiet=False, verbose=False)
    from bayeslora_cli.cli.inspect_ranks import inspect_ranks as show

    show(
        runs,
        compare=compare,
        history=history,
        scores=scores,
        as_json=as_json,
        as_csv=as_csv,
        output=output,
    )
