"""`bayeslora train`: trains one run or several, or prints what they would be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from bayeslora_cli.api.run import Run
from bayeslora_cli.api.training import plan_resolved, train_resolved, workspace
from bayeslora_cli.cli.help.presets import print_presets
from bayeslora_cli.cli.help.train_options import takes_options, typed_values
from bayeslora_cli.cli.progress import ProgressBar, logger, set_up_logging
from bayeslora_cli.cli.reading.table import print_table
from bayeslora_cli.config.options import PRINTED, SWEEP, WHAT
from bayeslora_cli.errors import BayesloraError, ConfigError, RunDirError, UserError
from bayeslora_cli.execution.launch_environment import joined, place
from bayeslora_cli.execution.signals import listening
from bayeslora_cli.reports.run_summary import closing_table
from bayeslora_cli.reports.terminal_text import say, say_path
from bayeslora_cli.sweeps.grid import PlannedRun, Sweep, expand


@takes_options
def train(
    ctx: typer.Context,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: a name that `bayeslora presets` lists, or a .toml file.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    list_presets: Annotated[
        bool,
        typer.Option(
            "--list-presets", help="List the built-in presets and exit.", rich_help_panel=WHAT
        ),
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train one run per seed, such as 2021-2025 or 1,5,7-9.",
            rich_help_panel=SWEEP,
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Number of runs to train at the same time, each in its own process with a log "
            "beside its directory; several GPUs are shared evenly (default: 1, in this process).",
            rich_help_panel=SWEEP,
            show_default=False,
        ),
    ] = None,
    print_commands: Annotated[
        bool,
        typer.Option(
            "--print-commands",
            help="Print one command per run, for a SLURM array, and exit.",
            rich_help_panel=SWEEP,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be done, and what it needs, and exit.",
            rich_help_panel=PRINTED,
        ),
    ] = False,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            help="With --dry-run: memory of the GPU that the run is meant for (default: of this "
            "machine's GPU).",
            rich_help_panel=PRINTED,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the result, one JSON object, and nothing else.",
            rich_help_panel=PRINTED,
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Print only the result and warnings.", rich_help_panel=PRINTED
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Print debug messages too.", rich_help_panel=PRINTED),
    ] = False,
    **options: Any,
) -> None:
    """Train a run, or one for each combination of lists, and leave their directories.

    A directory holds adapter, posterior, ranks and metrics.

    Values not given come from the task's preset, the paper's settings.
    Step numbers of a preset scale with the run's length.
    The last line printed is the run's directory.
    Stopped or killed, it goes on when the same command is run again.
    """
    if list_presets:
        print_presets()
        return
    typed = typed_values(options)
    console = set_up_logging(quiet=quiet, verbose=verbose)
    if seeds is not None:
        if "seed" in typed:
            raise ConfigError([f"--seed {typed['seed']}: not together with --seeds {seeds}"])
        typed["seed"] = seeds
    if jobs is not None and jobs < 1:
        raise ConfigError([f"--jobs {jobs}: must be at least 1"])
    if gpu_memory is not None and not dry_run:
        raise ConfigError([f"--gpu-memory {gpu_memory:g}: only together with --dry-run"])
    with listening() as stop, joined(place(), stop) as processes:
        with processes.all_or_none():
            sweep = expand(typed, preset)
            if jobs is not None and processes.world > 1:
                raise UserError(
                    f"--jobs {jobs}: {processes.world} processes train one run at a time together; "
                    "leave it out, or start this command in only one process"
                )
        for notice in sweep.notices:
            logger.warning("%s", notice)
        if print_commands:
            for planned in sweep.runs:
                print(planned.command())
        elif dry_run:
            with processes.all_or_none():
                _print_plans(sweep, processes.world, gpu_memory, as_json=as_json)
        elif len(sweep.runs) > 1:
            from bayeslora_cli.sweeps.runner import run_sweep

            runs, problems = run_sweep(
                sweep.runs, jobs or 1, console, lambda: ProgressBar(console), stop, processes
            )
            with processes.all_or_none():
                if processes.first:
                    _print_sweep(runs, problems, as_json=as_json)
        else:
            run = train_resolved(
                sweep.runs[0].resolved,
                ProgressBar(console),
                stop=stop,
                workspace=ctx.obj,
                processes=processes,
            )
            if processes.first:
                _print_run(run, as_json=as_json)


def _print_run(run: Run, *, as_json: bool) -> None:
    from rich.console import Console

    result = run.result
    if as_json:
        print(json.dumps({"run": str(run.path), **result}, allow_nan=False))
        return
    closing_table(result, run.ranks, Console())
    say_path(run.path)


def _print_plans(sweep: Sweep, processes: int, gpu_memory: float | None, *, as_json: bool) -> None:
    """Print what each run would be; in JSON one object, or a list for several runs."""
    kept = workspace()
    found = [
        plan_resolved(planned.resolved, workspace=kept, processes=processes, gpu_memory=gpu_memory)
        for planned in sweep.runs
    ]
    if as_json:
        plans = [plan.to_json() for plan in found]
        print(json.dumps(plans if len(plans) > 1 else plans[0], allow_nan=False))
    else:
        say("\n\n".join(plan.describe() for plan in found))


def _print_sweep(runs: Sequence[PlannedRun], problems: Mapping[str, str], *, as_json: bool) -> None:
    """Print the runs that are done, and then raise the problems of the others.

    Raises:
        BayesloraError: there are problems.
    """
    problems, done = dict(problems), []
    for planned in runs:
        if planned.label not in problems:
            try:
                done.append((planned.run.path, planned.run.read_result()))
            except RunDirError as error:
                problems[planned.label] = f"{error}; remove the run, or put the file back"
    if as_json:
        found: list[dict[str, Any]] = [{"run": str(path), **result} for path, result in done]
        found += [
            {"run": str(planned.run.path), "error": problems[planned.label]}
            for planned in runs
            if planned.label in problems
        ]
        print(json.dumps(found, allow_nan=False))
    elif done:
        print_table([path for path, _ in done], forms={})
        print()
        for path, _ in done:
            say_path(path)
    if problems:
        causes: dict[str, list[str]] = {}
        for label, problem in problems.items():
            causes.setdefault(problem, []).append(label)
        lines = "\n".join(f"{', '.join(labels)}: {cause}" for cause, labels in causes.items())
        raise BayesloraError(f"{len(problems)} of {len(runs)} runs failed\n{lines}")
