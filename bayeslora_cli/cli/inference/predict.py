"""`bayeslora predict`: predicts rows of a file or of a pipe, of any number."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from bayeslora_cli.api.prediction import FORMS, OUTPUT_FORMS, STDIN, predict_file
from bayeslora_cli.api.run import Run
from bayeslora_cli.cli.help.shared_options import (
    BasePrecision,
    BatchSize,
    Device,
    ModelPlace,
    SampleSeed,
    Temperature,
    TrustRemoteCode,
    Verify,
)
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.execution.signals import EXIT_INTERRUPTED
from bayeslora_cli.reports.terminal_text import say_path

_REDRAW = 0.5
"""Seconds between two redraws of the number of rows."""


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Rows to predict: .csv, .tsv, .jsonl, .parquet or .txt (a text a line); none or "
            "-: standard input, a text a line or JSON Lines.",
        ),
    ] = STDIN,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file: .csv, .tsv, .jsonl or .parquet (default: standard output).",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Name this many likeliest classes in place of each class's probability (default: "
            "5 if there are more than 20 classes).",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Average over this many samples of the posterior; adds the mutual information, "
            "or a score's variance.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of the input to keep, as a,b; '' for none (default: all).",
        ),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(FORMS), help="Form of the input (default: by the ending, or found)."
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(OUTPUT_FORMS),
            help="Form of standard output (default: csv for csv, tsv for tsv, else jsonl).",
        ),
    ] = None,
    text_columns: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS", help="Columns of the texts (default: as the training's were named)."
        ),
    ] = None,
    temperature: Temperature = None,
    seed: SampleSeed = None,
    batch_size: BatchSize = None,
    base_precision: BasePrecision = None,
    model: ModelPlace = None,
    device: Device = "auto",
    verify: Verify = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Predict rows of any number: the input's columns, and behind them the predictions.

    Rows are read, predicted and written some thousand at a time, in their order.
    """
    set_up_logging(quiet=False, verbose=False)
    if source == STDIN and sys.stdin.isatty():
        logger.info("reading from the terminal: a text a line, Ctrl-D after the last")
    opened = Run(
        run, device=device, trust_remote_code=trust_remote_code, model=model, verify=verify
    )
    try:
        with _counter(to_terminal=output is None and sys.stdout.isatty()) as progress:
            predict_file(
                opened,
                source,
                output,
                output_format=output_format,
                progress=progress,
                samples=samples,
                temperature=temperature,
                seed=seed,
                top_k=top_k,
                keep=_names(keep),
                text_columns=_names(text_columns),
                input_format=input_format,
                batch_size=batch_size,
                base_precision=base_precision,
            )
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # nobody reads any more, as behind `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if output is not None:
        say_path(output)


def _names(typed: str | None) -> tuple[str, ...] | None:
    return None if typed is None else tuple(filter(None, (x.strip() for x in typed.split(","))))


@contextmanager
def _counter(*, to_terminal: bool) -> Iterator[Callable[[int], None]]:
    """Count rows on one line of the terminal, unless the rows themselves are printed there."""
    began = shown = perf_counter()
    drawn = False

    def show(rows: int) -> None:
        nonlocal shown, drawn
        now = perf_counter()
        if to_terminal or not sys.stderr.isatty() or now - shown < _REDRAW:
            return
        shown, drawn = now, True
        print(
            f"\r{rows:,} rows, {rows / (now - began):,.0f}/s ", end="", file=sys.stderr, flush=True
        )

    try:
        yield show
    finally:
        if drawn:
            print(file=sys.stderr)
