"""`bayeslora generate`: continues prompts with a run's model, or with a model without any run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora_cli.api.models import generate as generate_from_model
from bayeslora_cli.api.run import Run
from bayeslora_cli.cli.help.shared_options import (
    AsJson,
    BasePrecision,
    Device,
    TrustRemoteCode,
    Verify,
)
from bayeslora_cli.cli.progress import logger, set_up_logging
from bayeslora_cli.config.catalogue import PRECISIONS
from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.terminal_text import say


def generate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            show_default=False,
            help="Directory of a finished run that predicts tokens; none: --model as it is.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to continue or to answer; may be given several times; - reads it from "
            "standard input.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Write one text for each of this many samples of the posterior."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Number of tokens after which a text is cut off.")
    ] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            min=0,
            help="Draw tokens from the softmax of their logits over this number; 0: take the "
            "likeliest (greedy).",
        ),
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Seed of drawn tokens and of the posterior's samples."
        ),
    ] = 0,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            show_default=False,
            help="Render prompts by the chat template, or take them as they are (default: as the "
            "run's rows were; of a model without a run, by the template if it has one).",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="The chat's system turn (default: the template's own).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Without a run, the model: a hub name, directory, package:NAME/PATH or GGUF "
            "file. With one, the new place of its pretrained model.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRECISIONS), help="Without a run (default: fp32); a run has its own."
        ),
    ] = None,
    base_precision: BasePrecision = None,
    verify: Verify = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, or answer them: the quick look at what a model has learned.

    A run's adapters are at the posterior's mean, or at each of --samples.
    """
    set_up_logging(quiet=False, verbose=False)
    prompts = _read_prompts(prompt)
    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "chat": chat,
        "system": system,
        "base_precision": base_precision,
    }
    if run is None:
        if model is None:
            raise UserError("name a finished run, or a model by --model")
        if samples is not None or verify:
            flag = "--verify" if samples is None else f"--samples {samples}"
            raise UserError(f"{flag}: it is for a finished run, and --model {model} is none")
        found = generate_from_model(
            model,
            prompts,
            device=device,
            precision=precision or PRECISIONS[0],
            trust_remote_code=trust_remote_code,
            **common,
        )
    else:
        if precision is not None:
            raise UserError(f"--precision {precision}: a run computes in its own; leave it out")
        opened = Run(
            run, device=device, trust_remote_code=trust_remote_code, model=model, verify=verify
        )
        found = opened.generate(prompts, samples=samples, **common)
    if as_json:
        facts = {"run": None if run is None else str(run), "model": model, "samples": samples}
        texts = [asdict(generation) for generation in found]
        print(json.dumps({**facts, **common, "generations": texts}))
        return
    _print_texts(found, sampled=samples is not None)
    finished = [whole for generation in found for whole in generation.finished]
    if not all(finished):
        logger.info(
            "%d of %d texts are cut off at --max-new-tokens %d",
            finished.count(False), len(finished), max_new_tokens,
        )  # fmt: skip


def _read_prompts(typed: Sequence[str] | None) -> list[str]:
    """Return the prompts, with standard input in the place of `-`."""
    if not typed:
        raise UserError("--prompt TEXT is missing; --prompt - reads it from standard input")
    if typed.count("-") > 1:
        raise UserError("--prompt -: standard input can be read only once")
    # without the newline that `echo` ends with: the model would answer it too
    return [sys.stdin.read().removesuffix("\n") if text == "-" else text for text in typed]


def _print_texts(found: Sequence[Any], *, sampled: bool) -> None:
    """Print `Generation`s: below the prompt if there are several, below the number of a sample."""
    for generation in found:
        if len(found) > 1:
            say(f"> {generation.prompt.rstrip()}")
        for number, text in enumerate(generation.texts, 1):
            if sampled:
                say(f"--- sample {number}")
            say(text)
