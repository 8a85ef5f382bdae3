"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bayeslora_cli import __version__, presets
from bayeslora_cli import options as o
from bayeslora_cli.config import FIELDS
from bayeslora_cli.console import Progress, closing_table, logger, set_up_logging, side_by_side
from bayeslora_cli.errors import BayesloraError, UserError
from bayeslora_cli.export_options import ExportOptions
from bayeslora_cli.reliability import check_figure, diagram, draw
from bayeslora_cli.report import RankReport
from bayeslora_cli.resolve import resolve

_FORM, _CHECK, _WHERE = "What to write", "How to check it", "Where to"  # panels of export's help

app = typer.Typer(
    name="bayeslora",
    help="Fine-tune transformers with low-rank adapters whose ranks a Bayesian score allocates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        print(f"bayeslora {__version__}")
        raise typer.Exit


@app.callback()
def bayeslora(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fine-tune transformers with low-rank adapters whose ranks a Bayesian score allocates."""


@app.command()
def train(
    task: o.TaskName = None,
    preset: o.Preset = None,
    list_presets: o.ListPresets = False,
    data: o.Data = None,
    model: o.Model = None,
    trust_remote_code: o.TrustRemoteCode = None,
    train_file: o.TrainFile = None,
    eval_file: o.EvalFile = None,
    text_columns: o.TextColumns = None,
    label_column: o.LabelColumn = None,
    method: o.MethodName = None,
    optimizer: o.Optimizer = None,
    criterion: o.Criterion = None,
    target_rank: o.TargetRank = None,
    init_rank: o.InitRank = None,
    target_modules: o.TargetModules = None,
    alpha: o.Alpha = None,
    orth_reg: o.OrthReg = None,
    t_init: o.TInit = None,
    t_final: o.TFinal = None,
    delta_t: o.DeltaT = None,
    epochs: o.Epochs = None,
    max_steps: o.MaxSteps = None,
    batch_size: o.BatchSize = None,
    grad_accum: o.GradAccum = None,
    max_length: o.MaxLength = None,
    dropout: o.Dropout = None,
    eval_every: o.EvalEvery = None,
    lr: o.Lr = None,
    lr_schedule: o.LrSchedule = None,
    boost_lr: o.BoostLr = None,
    boost_until_step: o.BoostUntilStep = None,
    warmup_steps: o.WarmupSteps = None,
    weight_decay: o.WeightDecay = None,
    ess: o.Ess = None,
    ess_per_example: o.EssPerExample = None,
    train_samples: o.TrainSamples = None,
    hess_init: o.HessInit = None,
    ivon_beta1: o.IvonBeta1 = None,
    ivon_beta2: o.IvonBeta2 = None,
    clip_radius: o.ClipRadius = None,
    seed: o.Seed = None,
    precision: o.Precision = None,
    device: o.Device = None,
    gradient_checkpointing: o.GradientCheckpointing = None,
    eval_batch_size: o.EvalBatchSize = None,
    output: o.Output = None,
    overwrite: o.Overwrite = None,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    log_every: o.LogEvery = None,
) -> None:
    """Train a run and leave its directory: adapter, posterior, ranks, metrics.

    Values not given come from the task's preset, the paper's settings.
    Step numbers of a preset scale with the run's length.
    The last line printed is the run's directory.
    """
    typed = {n: v for n, v in locals().items() if n in FIELDS and v is not None}
    if list_presets:
        for name, what in presets.list_presets().items():
            print(f"{name:18} {what}")
        return
    for name in ("target_modules", "text_columns"):
        if name in typed:
            typed[name] = tuple(part for part in typed[name].split(",") if part)
    console = set_up_logging(quiet=quiet, verbose=verbose)
    resolved = resolve(typed, preset)
    if dry_run:
        from bayeslora_cli.plan import describe_plan, plan
        from bayeslora_cli.prepare import prepare

        found = plan(prepare(resolved), resolved)
        print(json.dumps(found, allow_nan=False) if as_json else describe_plan(found))
        return
    from rich.console import Console

    from bayeslora_cli.engine import train as run_training

    run = run_training(resolved, Progress(console))
    result = run.read_json(run.result)
    if as_json:
        print(json.dumps({"run": str(run.path), **result}, allow_nan=False))
        return
    report = RankReport.from_json(run.read_json(run.ranks), str(run.ranks))
    closing_table(result, report, Console())
    print(run.path)


@app.command("eval")
def evaluate(
    run: o.RunPath,
    split: Annotated[str, typer.Option(help="train, validation, test or ood.")] = "validation",
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
        typer.Option(min=1, help="Predict over this many samples of the posterior as well."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Factor of the posterior's variance (--samples).")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the samples.")] = 0,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a finished run at its posterior mean and over samples, or write what it predicts."""
    set_up_logging(quiet=False, verbose=False)
    figure = None if reliability == Path("-") else reliability
    if figure is not None:
        check_figure(figure)
    if samples is None and temperature != 1:
        raise UserError(f"--temperature {temperature}: it is of samples; give --samples S as well")
    from bayeslora_cli.evaluate import Sampling, describe, evaluate_run

    found = evaluate_run(
        run,
        split=split,
        data=data,
        file=eval_file,
        sampling=None if samples is None else Sampling(samples, temperature, seed),
        ood=ood,
        reliability=reliability is not None,
        predictions=predictions,
        submission=submission,
        device=device,
        batch_size=batch_size,
    )
    note = (found.get("posterior") or {}).get("note")
    if note is not None:
        logger.warning("%s", note)
    if figure is not None:
        draw(figure, found["reliability"], "/".join(run.resolve().parts[-2:]))
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    if found["metrics"] or "ood" in found:
        simple = found.keys().isdisjoint(("sampled", "ood"))
        print(describe(found["metrics"]) if simple else side_by_side(found))
    if reliability is not None:
        print(diagram(found["reliability"]))
    for path in (figure, predictions, submission):
        if path is not None:
            print(path)


@app.command()
def export(
    run: o.RunPath,
    form: Annotated[
        str, typer.Option("--format", help="adalora, lora, merged or onnx.", rich_help_panel=_FORM)
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
            "training; prints the metrics before and after.",
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

    The export is reopened without bayeslora, and its logits are compared with the run's, before it
    appears; a wrong one leaves nothing behind.
    The last line printed is the export's directory.
    """
    set_up_logging(quiet=False, verbose=False)
    from bayeslora_cli.export import describe_export, export_run

    options = ExportOptions(
        format=form,
        uniform_rank=uniform_rank,
        target_rank=target_rank,
        check_rows=check_rows,
        check_inputs=check_inputs,
        data=data,
        file=eval_file,
        device=device,
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


def main() -> None:
    """The entry point: known errors are one message and their exit code, bugs are tracebacks."""
    try:
        app()
    except BayesloraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
