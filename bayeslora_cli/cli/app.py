"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bayeslora_cli import __version__
from bayeslora_cli.cli import commands
from bayeslora_cli.cli import options as o
from bayeslora_cli.cli.progress import Progress, logger, set_up_logging
from bayeslora_cli.cli.results_command import print_table
from bayeslora_cli.config import presets
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.errors import (
    EXIT_FAILED,
    BayesloraError,
    ConfigError,
    Preempted,
    RunDirError,
    UserError,
)
from bayeslora_cli.execution.launch_environment import Place, joined, place
from bayeslora_cli.execution.signals import listening
from bayeslora_cli.reports.run_summary import closing_table
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.sweeps.grid import Sweep, expand

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
    ctx: typer.Context,
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
    blora_mode: o.BloraMode = None,
    lambda_quant: o.LambdaQuant = None,
    lambda_rank: o.LambdaRank = None,
    bit_ladder: o.BitLadder = None,
    quantize_base: o.QuantizeBase = None,
    reg: o.Reg = None,
    gate_lr: o.GateLr = None,
    range_lr: o.RangeLr = None,
    epochs: o.Epochs = None,
    max_steps: o.MaxSteps = None,
    batch_size: o.BatchSize = None,
    group_by_length: o.GroupByLength = None,
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
    seeds: o.Seeds = None,
    jobs: o.Jobs = None,
    print_commands: o.PrintCommands = False,
    precision: o.Precision = None,
    device: o.Device = None,
    deterministic: o.Deterministic = None,
    eager: o.Eager = None,
    compile: o.Compile = None,
    gradient_checkpointing: o.GradientCheckpointing = None,
    eval_batch_size: o.EvalBatchSize = None,
    checkpoint_every: o.CheckpointEvery = None,
    output: o.Output = None,
    overwrite: o.Overwrite = None,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    log_every: o.LogEvery = None,
    log_to: o.LogTo = None,
) -> None:
    """Train a run, or one for each combination of lists, and leave their directories.

    A directory holds adapter, posterior, ranks and metrics.

    Values not given come from the task's preset, the paper's settings.
    Step numbers of a preset scale with the run's length.
    The last line printed is the run's directory.
    Stopped or killed, it goes on when the same command is run again.
    """
    typed = {n: v for n, v in locals().items() if n in OPTIONS and v is not None}
    if list_presets:
        for name, what in presets.list_presets().items():
            print(f"{name:18} {what}")
        return
    for name in ("target_modules", "text_columns", "log_to"):
        if name in typed:
            typed[name] = tuple(part for part in typed[name].split(",") if part)
    console = set_up_logging(quiet=quiet, verbose=verbose)
    if seeds is not None:
        if seed is not None:
            raise ConfigError([f"--seed {seed}: not together with --seeds {seeds}"])
        typed["seed"] = seeds
    if jobs is not None and jobs < 1:
        raise ConfigError([f"--jobs {jobs}: must be at least 1"])
    with listening() as stop, joined(place(), stop) as processes:
        with processes.all_or_none():
            sweep = expand(typed, preset)
            if jobs is not None and processes.world > 1:
                raise UserError(
                    f"--jobs {jobs}: {processes.world} processes train one run at a time together; "
                    "leave it out, or start this command alone"
                )
        for notice in sweep.notices:
            logger.warning("%s", notice)
        if print_commands:
            for planned in sweep.runs:
                print(planned.command())
        elif dry_run:
            with processes.all_or_none():
                _print_plans(sweep, processes.world, as_json=as_json)
        elif len(sweep.runs) > 1:
            from bayeslora_cli.sweeps.runner import run_sweep

            problems = run_sweep(
                sweep.runs, jobs or 1, console, lambda: Progress(console), stop, processes
            )
            with processes.all_or_none():
                if processes.first:
                    _print_sweep(sweep, problems, as_json=as_json)
        else:
            from bayeslora_cli.training.loop import train as run_training

            resolved = sweep.runs[0].resolved
            run = run_training(resolved, Progress(console), stop, ctx.obj, processes)
            if processes.first:
                _print_run(run, as_json=as_json)


def _print_run(run: RunDir, *, as_json: bool) -> None:
    from rich.console import Console

    result = run.read_result()
    if as_json:
        print(json.dumps({"run": str(run.path), **result}, allow_nan=False))
        return
    report = RankReport.from_json(run.read_json(run.ranks), str(run.ranks))
    closing_table(result, report, Console())
    print(run.path)


def _print_plans(sweep: Sweep, processes: int, *, as_json: bool) -> None:
    """What each run would be: one object or several, in JSON a list of them."""
    from bayeslora_cli.training.plan import describe_plan, plan
    from bayeslora_cli.training.preparation import prepare

    found = [plan(prepare(planned.resolved), planned.resolved, processes) for planned in sweep.runs]
    if as_json:
        print(json.dumps(found if len(found) > 1 else found[0], allow_nan=False))
    else:
        print("\n\n".join(map(describe_plan, found)))


def _print_sweep(sweep: Sweep, problems: Mapping[str, str], *, as_json: bool) -> None:
    """The runs that are done, and then the problems of the others.

    Raises:
        BayesloraError: there are some.
    """
    problems, done = dict(problems), []
    for planned in sweep.runs:
        if planned.label not in problems:
            try:
                done.append((planned.run.path, planned.run.read_result()))
            except RunDirError as error:
                problems[planned.label] = f"{error}; remove the run, or put the file back"
    if as_json:
        found: list[dict[str, Any]] = [{"run": str(path), **result} for path, result in done]
        found += [
            {"run": str(planned.run.path), "error": problems[planned.label]}
            for planned in sweep.runs
            if planned.label in problems
        ]
        print(json.dumps(found, allow_nan=False))
    elif done:
        print_table([path for path, _ in done], forms={})
        print()
        for path, _ in done:
            print(path)
    if problems:
        lines = "\n".join(f"{label}: {problem}" for label, problem in problems.items())
        raise BayesloraError(f"{len(problems)} of {len(sweep.runs)} runs failed\n{lines}")


for name, command in (
    ("eval", commands.evaluate),
    ("inspect-ranks", commands.inspect_ranks),
    ("export", commands.export),
):
    app.command(name)(command)


def main(shared: Any = None) -> None:
    """The entry point: known errors are one message and their exit code, bugs are tracebacks.

    Args:
        shared: a `shared.Shared` of the runs that this process has trained before.
    """
    # the other commands are never of several processes, though srun may start several of them
    training = next((word for word in sys.argv[1:] if not word.startswith("-")), None) == "train"
    at = place() if training else Place()
    try:
        with at.voice():
            app(obj=shared)
    except BayesloraError as error:
        if not error.reported_elsewhere:
            kind = "" if isinstance(error, Preempted) else "error: "
            print(at.name if at.rank else "", kind, error, sep="", file=sys.stderr)
        at.leave(error.exit_code)
    except SystemExit as done:
        at.leave(done.code)
    except Exception:
        if at.world == 1:
            raise
        print(at.name, end="", file=sys.stderr)
        traceback.print_exc()
        at.leave(EXIT_FAILED)
