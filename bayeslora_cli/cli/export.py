"""`bayeslora export`: writes a finished run in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bayeslora_cli.api.cuts import cut_adapter, is_adapter
from bayeslora_cli.api.run import Run
from bayeslora_cli.cli.help.shared_options import NEW_PLACE, refuse, typed_names
from bayeslora_cli.cli.progress import set_up_logging
from bayeslora_cli.config.catalogue_text import described_formats
from bayeslora_cli.config.values import ranks_text
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.terminal_text import say, say_path

_FORM, _CHECK, _WHERE = "What to write", "How to check it", "Where to"  # panels of the help


def export(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    form: Annotated[
        str,
        typer.Option("--format", help=f"{described_formats()}.", rich_help_panel=_FORM),
    ],
    patterns: Annotated[
        bool,
        typer.Option(
            "--patterns",
            help="lora: a rank and an alpha of its own for each matrix (rank_pattern, "
            "alpha_pattern), for PEFT: a smaller file, but not all servers know these.",
            rich_help_panel=_FORM,
        ),
    ] = False,
    uniform_rank: Annotated[
        bool,
        typer.Option(
            "--uniform-rank",
            help="lora: all matrices padded with zeros to one rank; so they are without this "
            "option, too.",
            rich_help_panel=_FORM,
        ),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="merged: fp32, or bf16: added up in fp32 and rounded; prints what of the "
            "adapter bf16 keeps.",
            rich_help_panel=_FORM,
        ),
    ] = "fp32",
    target_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prune further to this mean rank of a matrix, by the run's scores and without "
            "training; prints the metrics before and after, in fp32.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="By what --target-rank orders the ranks of all matrices: singular-values of the "
            "products, or a criterion (default: the run's own).",
            rich_help_panel=_FORM,
        ),
    ] = None,
    check_rows: Annotated[
        int,
        typer.Option(min=1, help="Number of rows to compare logits on.", rich_help_panel=_CHECK),
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
            help="Your own rows instead: a file or hub data set, as for train.",
            rich_help_panel=_CHECK,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N or auto.", rich_help_panel=_CHECK)
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(help=NEW_PLACE, rich_help_panel=_CHECK),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Hash the pretrained model's weights anew.", rich_help_panel=_CHECK
        ),
    ] = False,
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
    """Write a finished run in another format.

    The export is reopened without bayeslora before it appears, and its logits
    are compared with the run's, in fp32: they may differ by the number that
    --format has in brackets, times the largest logit, or times 1 where all
    logits are smaller, or by more where rounding in fp32 alone changes the
    run's logits by more. Integer codes (quantized) are read back by bayeslora,
    and must give the run's logits to the bit.
    A wrong export leaves nothing behind.
    The last line printed is the export's directory.
    """
    set_up_logging(quiet=False, verbose=False)
    if is_adapter(run):
        _cut(ctx, run, form, target_rank, by, output, overwrite=overwrite, as_json=as_json)
        return
    found = Run(
        run, device=device, trust_remote_code=trust_remote_code, model=model, verify=verify
    ).export(
        form,
        output,
        overwrite=overwrite,
        push_to_hub=push_to_hub,
        patterns=patterns,
        uniform_rank=uniform_rank,
        precision=precision,
        target_rank=target_rank,
        by=by,
        check_rows=check_rows,
        check_inputs=check_inputs,
        data=data,
        file=eval_file,
    )
    if as_json:
        print(json.dumps({"export": str(found.path), **found.manifest}, allow_nan=False))
        return
    say(found.describe(warned=False))
    say_path(found.path)


_OF_ADAPTERS = {"run", "form", "target_rank", "by", "output", "overwrite", "as_json"}


def _cut(
    ctx: typer.Context, adapter: Path, form: str, target_rank: int | None, by: str | None,
    output: Path | None, *, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Cut an adapter from elsewhere, which no run and no data belong to."""
    refuse(typed_names(ctx) - _OF_ADAPTERS, f"it is for a run, and {adapter} is none")
    if form != "lora" or target_rank is None or by not in (None, "singular-values"):
        raise UserError(
            f"{adapter}: an adapter without a run can be cut by the singular values of its "
            "products: give --format lora --target-rank R --by singular-values --output DIR"
        )
    if output is None:
        raise UserError(f"--output DIR is missing: where to write what is cut of {adapter}")
    found = cut_adapter(adapter, target_rank, output, overwrite=overwrite)
    if as_json:
        print(json.dumps({"export": str(output), **found}, allow_nan=False))
        return
    ranks = found["ranks"].values()
    say(
        f"{found['matrices']} matrices, {ranks_text(ranks)}; kept "
        f"{found['kept']:.2%} of the products' squared norm"
    )
    say_path(output)
