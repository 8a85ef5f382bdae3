"""`bayeslora report`: writes a page about runs, or serves it while a training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bayeslora_cli.api.reading import report as api
from bayeslora_cli.cli.help.shared_options import (
    Device,
    TrustRemoteCode,
    refuse,
    typed_names,
)
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.terminal_text import say, say_path

_OF_THE_PAGE = {"output", "no_evaluate", "samples", "data", "model", "device", "trust_remote_code"}


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            show_default=False,
            help="Run directories, finished or not, or directories that hold runs at any depth.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The page: FILE.html.")] = Path("report.html"),
    at: Annotated[
        str | None,
        typer.Option(
            help="Evaluation that counts: best_at_budget, best or last (default: best_at_budget)."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Predict over this many samples of each posterior as well."),
    ] = None,
    no_evaluate: Annotated[
        bool,
        typer.Option(
            "--no-evaluate",
            help="Read only the runs' files and load no model: no reliability diagrams and no "
            "examples.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Directory of the data (default: the one that a run was trained on)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="New place of the pretrained model (default: where it was)."),
    ] = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Follow running trainings: serve the page on this machine until Ctrl-C, write "
            "nothing.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of --live on 127.0.0.1 (default: a free one)."),
    ] = None,
) -> None:
    """Write one page about runs: results, learning curves, ranks, calibration, examples.

    The page is one file, which opens in any browser from disk and asks for nothing else.
    Several runs stand side by side, grouped as `bayeslora table` groups them.
    """
    set_up_logging(quiet=False, verbose=False)
    if live:
        refuse(
            typed_names(ctx) & _OF_THE_PAGE, "--live reads only files and writes none; leave it out"
        )
        api.watch(*runs, at=at, port=port or 0, started=_started)
        return
    if port is not None:
        raise UserError("--port: only with --live")
    if no_evaluate and samples is not None:
        raise UserError(f"--samples {samples}: --no-evaluate loads no model; leave one out")
    written = api.report(
        *runs, output=output, at=at, evaluate=not no_evaluate, samples=samples, data=data,
        model=model, device=device, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    logger.info("wrote %.1f MB", written.stat().st_size / 1e6)
    say_path(written)


def _started(address: str) -> None:
    say(address)
    logger.info("open it in a browser; Ctrl-C ends it")
