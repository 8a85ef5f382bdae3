"""The command line: each command parses, calls one function and prints."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from bayeslora_cli import __version__
from bayeslora_cli.cli.evaluate import evaluate
from bayeslora_cli.cli.export import export
from bayeslora_cli.cli.help.command import Group
from bayeslora_cli.cli.help.commands import (
    EvalCommand,
    ExportCommand,
    GenerateCommand,
    InspectRanksCommand,
    PredictCommand,
    PresetsCommand,
    ReportCommand,
    TableCommand,
    TrainCommand,
)
from bayeslora_cli.cli.help.presets import presets
from bayeslora_cli.cli.inference.generate import generate
from bayeslora_cli.cli.inference.predict import predict
from bayeslora_cli.cli.progress import lasting_streams
from bayeslora_cli.cli.reading.inspect_ranks import inspect_ranks
from bayeslora_cli.cli.reading.report import report
from bayeslora_cli.cli.reading.table import table
from bayeslora_cli.cli.train import train
from bayeslora_cli.errors import EXIT_FAILED, BayesloraError, Preempted, explained
from bayeslora_cli.execution.launch_environment import Place, place
from bayeslora_cli.reports.terminal_text import say

app = typer.Typer(
    name="bayeslora",
    cls=Group,
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


for name, command, form in (
    ("train", train, TrainCommand),
    ("eval", evaluate, EvalCommand),
    ("predict", predict, PredictCommand),
    ("table", table, TableCommand),
    ("inspect-ranks", inspect_ranks, InspectRanksCommand),
    ("report", report, ReportCommand),
    ("export", export, ExportCommand),
    ("generate", generate, GenerateCommand),
    ("presets", presets, PresetsCommand),
):
    app.command(name, cls=form)(command)


@contextmanager
def _explained() -> Iterator[None]:
    """Give errors of the machine, and of names that it cannot take, a message of their own.

    Raises:
        BayesloraError: in place of such an error.
    """
    try:
        yield
    except (SystemExit, BayesloraError):
        raise
    except BaseException as error:  # the tokenizers' library raises no Exception
        if (found := explained(error)) is not None:
            raise found from error
        raise


def main(workspace: Any = None) -> None:
    """Run the command line: a known error is one message and an exit code, a bug a traceback.

    Args:
        workspace: from `api.training.workspace`, of the runs that this process has trained before.
    """
    # only train runs in several processes, though srun may start several of any command
    training = next((word for word in sys.argv[1:] if not word.startswith("-")), None) == "train"
    if os.environ.get("COLUMNS") == "0":  # of a terminal without a size: nothing would be printed
        del os.environ["COLUMNS"]
    # threads that wait for each other spin, for long enough to slow another process's tenfold;
    # read when torch is imported
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    at = place() if training else Place()
    try:
        with lasting_streams(), at.only_first_prints(), _explained():
            app(obj=workspace)
    except BayesloraError as error:
        if not error.reported_elsewhere:
            kind = "" if isinstance(error, Preempted) else "error: "
            say(f"{at.name if at.rank else ''}{kind}{error}", file=sys.stderr)
        at.exit(error.exit_code)
    except SystemExit as done:
        at.exit(done.code)
    except Exception:
        if at.world == 1:
            raise
        print(at.name, end="", file=sys.stderr)
        traceback.print_exc()
        at.exit(EXIT_FAILED)
