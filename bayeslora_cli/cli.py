"""The command line: parse, call one function, print."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora_cli import __version__
from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.presets import resolve

app = typer.Typer(
    name="bayeslora",
    help="Fine-tune transformers with low-rank adapters whose ranks a Bayesian score allocates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WHAT, METHOD, RANKS, LENGTH = "What to train", "Method", "Ranks", "How long"
RATES, POSTERIOR, MACHINE = "Learning rates", "Posterior (IVON)", "Machine and output"


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


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
    task: Annotated[str, _option("cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli.", WHAT)],
    data: Annotated[
        str | None,
        _option("Directory in GLUE's TSV layout or saved by datasets; else the hub.", WHAT),
    ] = None,
    model: Annotated[
        str | None,
        _option("Backbone: hub name or directory (default: microsoft/deberta-v3-base).", WHAT),
    ] = None,
    method: Annotated[
        str | None, _option("adalora, lora (fixed rank) or full (default: adalora).", METHOD)
    ] = None,
    optimizer: Annotated[
        str | None, _option("ivon or adamw (default: ivon for adalora, else adamw).", METHOD)
    ] = None,
    criterion: Annotated[
        str | None,
        _option(
            "Importance of a triplet: snr, snr-abs, precision (ivon alone), sensitivity, "
            "magnitude (default: snr; sensitivity with adamw).",
            METHOD,
        ),
    ] = None,
    target_rank: Annotated[
        int | None,
        _option("Mean rank of a matrix at the end; the rank of lora (default: 2).", RANKS),
    ] = None,
    init_rank: Annotated[
        int | None, _option("Rank of each matrix at the start (default: 1.5 x target).", RANKS)
    ] = None,
    target_modules: Annotated[
        str | None,
        _option(
            "Endings of layer names to adapt, comma-separated, or all-linear (default: PEFT's for "
            "the backbone).",
            RANKS,
        ),
    ] = None,
    alpha: Annotated[float | None, _option("Scale: alpha / initial rank.", RANKS)] = None,
    orth_reg: Annotated[
        float | None, _option("Weight of the orthogonality penalty (adalora).", RANKS)
    ] = None,
    t_init: Annotated[int | None, _option("Steps before the first pruning.", RANKS)] = None,
    t_final: Annotated[int | None, _option("Steps at the end with the ranks fixed.", RANKS)] = None,
    delta_t: Annotated[int | None, _option("Steps between two allocations.", RANKS)] = None,
    epochs: Annotated[float | None, _option("Passes over the training data.", LENGTH)] = None,
    max_steps: Annotated[
        int | None, _option("Optimisation steps, instead of epochs.", LENGTH)
    ] = None,
    batch_size: Annotated[
        int | None, _option("Examples a step, over all micro-batches (default: 32).", LENGTH)
    ] = None,
    grad_accum: Annotated[
        int | None,
        _option("Micro-batches that a batch is split into, to save memory (default: 1).", LENGTH),
    ] = None,
    max_length: Annotated[int | None, _option("Tokens an example at the most.", LENGTH)] = None,
    eval_every: Annotated[
        int | None,
        _option(
            "Steps between evaluations from the second epoch on, besides epochs' ends.", LENGTH
        ),
    ] = None,
    lr: Annotated[float | None, _option("Learning rate that decays to 0.", RATES)] = None,
    lr_schedule: Annotated[
        str | None, _option("linear, or boost: a plateau of its own height first.", RATES)
    ] = None,
    boost_lr: Annotated[float | None, _option("Learning rate of the plateau.", RATES)] = None,
    boost_until_step: Annotated[
        int | None, _option("Step at which the plateau ends.", RATES)
    ] = None,
    warmup_steps: Annotated[
        int | None, _option("Steps of rising learning rate at the start.", RATES)
    ] = None,
    weight_decay: Annotated[
        float | None,
        _option("AdamW: decoupled decay (0); IVON: delta, added to the Hessian (1e-8).", RATES),
    ] = None,
    ess: Annotated[
        float | None,
        _option("Effective sample size (default: number of training examples).", POSTERIOR),
    ] = None,
    train_samples: Annotated[
        int | None, _option("Posterior samples a step (default: 1).", POSTERIOR)
    ] = None,
    hess_init: Annotated[
        float | None, _option("h0, the initial Hessian (default: 1).", POSTERIOR)
    ] = None,
    ivon_beta1: Annotated[
        float | None, _option("Average of the gradient (default: 0.9).", POSTERIOR)
    ] = None,
    ivon_beta2: Annotated[
        float | None, _option("Average of the Hessian (default: 0.99999).", POSTERIOR)
    ] = None,
    clip_radius: Annotated[
        float | None,
        _option("Bound of a preconditioned gradient element (default: 0.001).", POSTERIOR),
    ] = None,
    seed: Annotated[
        int | None, _option("Of initialisation, order, dropout and noise (default: 2021).", MACHINE)
    ] = None,
    precision: Annotated[
        str | None, _option("fp32, tf32, or bf16 (adapters stay fp32) (default: fp32).", MACHINE)
    ] = None,
    device: Annotated[
        str | None, _option("cpu, cuda, cuda:N or auto (default: auto).", MACHINE)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        _option("Trade time for activation memory.", MACHINE, "--gradient-checkpointing"),
    ] = None,
    eval_batch_size: Annotated[
        int | None, _option("Examples a forward pass of an evaluation (default: 64).", MACHINE)
    ] = None,
    log_every: Annotated[
        int | None, _option("Steps between two lines of metrics.jsonl (default: 50).", MACHINE)
    ] = None,
    output: Annotated[
        str | None,
        _option("Directory under which run directories are made (default: runs).", MACHINE),
    ] = None,
    overwrite: Annotated[
        bool | None,
        _option("Replace what an earlier run left.", MACHINE, "--overwrite"),
    ] = None,
) -> None:
    """Train a run and leave its directory: adapter, posterior, ranks, metrics.

    Values not given come from the task's preset, the paper's settings; step numbers of a preset
    scale with the run's length. The last line printed is the run's directory.
    """
    typed = {name: value for name, value in locals().items() if value is not None}
    if target_modules is not None:
        typed["target_modules"] = tuple(t for t in target_modules.split(",") if t)
    resolved = resolve(typed)
    from bayeslora_cli.engine import describe
    from bayeslora_cli.engine import train as run_training

    run = run_training(resolved)
    result = run.read_json(run.result)
    for name in ("best", "best_at_budget", "last"):
        found = result[name]
        print(f"{name:15} step {found['step'] + 1:6}  {describe(found['metrics'])}")
    print(run.path)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    data: Annotated[
        str | None,
        typer.Option(help="Directory of the data (default: the one that the run was trained on)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a forward pass (default: as in training).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a finished run at its posterior mean."""
    from bayeslora_cli.engine import describe
    from bayeslora_cli.evaluate import evaluate_run

    found = evaluate_run(run, split=split, data=data, device=device, batch_size=batch_size)
    print(json.dumps(found, allow_nan=False) if as_json else describe(found["metrics"]))


def main() -> None:
    """The entry point: known errors are one message and their exit code, bugs are tracebacks."""
    logger = logging.getLogger("bayeslora")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    try:
        app()
    except BayesloraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
