"""Writes a finished run in another format, after reopening the files and comparing logits."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.config.catalogue import FORMATS, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.splits import Batches, check_tokens
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.evaluation.cutting.gradients import gradient_averages, training_rows
from bayeslora_cli.evaluation.forward_passes import Metrics, evaluate_splits
from bayeslora_cli.evaluation.run_loading import load_run, of_the_training, split_names
from bayeslora_cli.export.card import export_card
from bayeslora_cli.export.findings import (
    BaseChange,
    Findings,
    QuantizationLoss,
    RoundingLoss,
)
from bayeslora_cli.export.formats.format import Format
from bayeslora_cli.export.hub_upload import upload, warn_of_base
from bayeslora_cli.export.independent_reader import open_tokenizer
from bayeslora_cli.export.request import MANIFEST, ExportOptions, check_options, check_output
from bayeslora_cli.export.verification import (
    base_change,
    batches_of,
    beginnings,
    compare,
    drop_unsupported_quantizers,
    own_batches,
    random_rows,
    rounding_loss,
    rounding_of,
    run_logits,
    unrounded_rows,
)
from bayeslora_cli.methods.cutting import Cut, check_order, cut
from bayeslora_cli.methods.network import Network
from bayeslora_cli.runs.atomic_write import replacing, write_json
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.environment import now, versions
from bayeslora_cli.runs.model_card import measured_in
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.comparison_rows import check_data_is_read, load_file
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")

SCHEMA = 1
PACKAGES = ("bayeslora", "torch", "transformers", "peft", "safetensors")


def export_run(
    path: Path,
    options: ExportOptions,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    model: str | None = None,
    verify: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Write an export, complete and checked or not at all; return its directory and its manifest.

    Args:
        output: the directory; None: RUN/export/FORMAT, with -rR after pruning to rank R.
        push_to_hub: name of a repository to upload to at the very end.
        model: the new place of the backbone, whose content is checked; None: where it was.
        verify: hash the backbone's weights anew, whatever is remembered of them.
    Raises:
        UserError: there is no run, options do not fit it, or data or model is missing.
        BayesloraError: the reopened export does not predict what the run predicts.
    """
    run = RunDir.open(path)
    # exports are written and compared in fp32, whatever the run's precision was
    trained = run.read_config(trust_remote_code=options.trust_remote_code)
    if model is not None:
        trained = replace(trained, model=model)
    config, task = replace(trained, precision="fp32"), run.read_task()
    result = run.read_result()
    check_options(options, config, push_to_hub)
    if options.by is not None:
        check_order(options.by, config)
    if FORMATS[options.format].needs_base:  # such files are opened on the checkpoint itself
        config = replace(config, base_precision=None)
    if push_to_hub is not None and FORMATS[options.format].needs_base:
        warn_of_base(config.model, push_to_hub)
    output = run.exports / options.directory if output is None else output
    check_output(output, overwrite=overwrite)
    examples = _examples(run, options, config, task)
    its_data = replace(config, data=options.data or config.data)
    training = training_rows(run, its_data, task, filter(None, [options.by]))
    form: Format = implementation(FORMATS[options.format].implementation)

    length, objective = config.max_length, objective_of(task)
    network, tokenizer, kept = load_run(run, config, objective, options.device, verify=verify)
    pruned = None
    if options.target_rank is not None:
        by = options.by or str(config.criterion)
        gradients = gradient_averages(network, tokenizer, config, training)
        found = cut(run, config, network, kept, options.target_rank, by, gradients=gradients)
        pruned = _prune(network, tokenizer, config, task, examples, found)
    inputs, first, rows = _inputs(options, config, task, tokenizer, examples)
    check_tokens(network.module, config.model, [rows])
    batches = batches_of(rows)
    expected = _expected(form, options, run, trained, network, batches)

    with _writing(output) as directory:
        directory.mkdir()
        facts = form.write(directory, network, config, tokenizer, options)
        tokenizer.save_pretrained(directory)
        own = open_tokenizer(directory, trust_remote_code=config.trust_remote_code)
        if first is not None:
            rows = beginnings(tokenise(first, own, length, objective), objective)
        theirs = own_batches(own, rows)
        reopened = form.reopen(directory, config, task, network.bank.theta.device)
        findings = Findings(
            check=compare(
                expected.logits,
                reopened,
                theirs,
                bound=FORMATS[options.format].bound,
                inputs=inputs,
                rounding=expected.rounding,
                advice=form.advice,
            ),
            loss=expected.loss,
            rounding=expected.less_exact,
            base=expected.base,
            run=result["best_at_budget"]["metrics"],
            run_precision=measured_in(trained),
            pruned=pruned,
            precision=measured_in(config),
        )
        commands = form.serving(config, task, facts)
        if commands:
            facts["serving"] = list(commands)
        text = export_card(form, options, config, task, result["steps"], findings, commands)
        (directory / "README.md").write_text(text, encoding="utf-8")
        manifest = _manifest(directory, run, config, options, network, findings, facts)
        write_json(directory / MANIFEST, manifest)
    if push_to_hub is not None:
        upload(output, push_to_hub)
    return output, manifest


def _examples(
    run: RunDir, options: ExportOptions, config: RunConfig, task: Task
) -> dict[str, Examples]:
    """Load the rows to check and to measure on; none for a check on random tokens."""
    if options.check_inputs == "random":
        return {}
    given = ["--train-file", "--eval-file"]
    if options.data is not None:
        check_data_is_read(config, options.data, options.file)
        config = replace(config, data=options.data)
    else:
        given.append("--data")
    if options.file is not None:
        return load_file(options.file, task, config.loss_on)
    try:
        with of_the_training(run, *given):
            return load_examples(config, split_names(task, "validation"), task=task)[1]
    except UserError as error:
        if options.target_rank is not None:
            raise
        raise UserError(f"{error}; --check-inputs random checks without data") from error


def _inputs(
    options: ExportOptions, config: RunConfig, task: Task, tokenizer: Any,
    examples: dict[str, Examples],
) -> tuple[str, Examples | None, TokenisedSplit]:  # fmt: skip
    """Make the rows to compare logits on; return their name and, unless random, texts too."""
    if not examples:
        parts = objective_of(task).sequences
        rows = random_rows(tokenizer, options.check_rows, config.max_length, parts=parts)
        return "random", None, rows
    split, found = next(iter(examples.items()))
    first = Examples(
        first=found.first[: options.check_rows],
        second=None if found.second is None else found.second[: options.check_rows],
        labels=None,
    )
    objective = objective_of(task)
    rows = beginnings(tokenise(first, tokenizer, config.max_length, objective), objective)
    return options.file or split, first, rows


# ---- the parts of an export


@dataclass(frozen=True, kw_only=True, slots=True)
class _Expected:
    """The logits that the reopened export must give, and what the format changes in the run's."""

    logits: list[Tensor]
    rounding: float
    """What rounding in fp32 alone changes."""
    loss: QuantizationLoss | None
    base: BaseChange | None
    less_exact: RoundingLoss | None


def _expected(
    form: Format, options: ExportOptions, run: RunDir, trained: RunConfig, network: Network,
    batches: Sequence[dict[str, Tensor]],
) -> _Expected:  # fmt: skip
    """Change the network into what the format holds, warn of what is lost, and compute the logits.

    Args:
        trained: the run's configuration; the network's frozen weights may have another precision.
    """
    loss = drop_unsupported_quantizers(network, form.keeps, batches)
    loss = loss or unrounded_rows(network, batches)
    if loss is not None:
        logger.warning("--format %s: %s", options.format, loss)
    logits, base, less_exact = run_logits(network, batches), None, None
    if FORMATS[options.format].needs_base and trained.base_precision is not None:
        before = _on_trained_weights(run, trained, network, options, batches)
        base = base_change(network, trained.base_precision, batches, before, logits)
        logger.warning("--format %s: %s", options.format, base)
    if (rounded := form.round(network, options)) is not None:
        exact, logits = logits, run_logits(network, batches)
        less_exact = rounding_loss(network, rounded, batches, exact, logits)
    # measured before it is known whether it is needed: merging changes the network
    bound = FORMATS[options.format].bound
    rounding = rounding_of(network, batches, logits) if bound > 0 else 0.0
    return _Expected(logits=logits, rounding=rounding, loss=loss, base=base, less_exact=less_exact)


def _on_trained_weights(
    run: RunDir, trained: RunConfig, network: Network, options: ExportOptions,
    batches: Sequence[dict[str, Tensor]],
) -> list[Tensor]:  # fmt: skip
    """Compute the run's logits on the frozen weights that it was trained on, in fp32."""
    config = replace(trained, precision="fp32")
    other = load_run(run, config, network.objective, options.device).network
    other.bank.mask.copy_(network.bank.mask)
    return run_logits(other, batches)


def _prune(
    network: Network, tokenizer: Any, config: RunConfig, task: Task,
    examples: dict[str, Examples], found: Cut,
) -> tuple[Metrics, Metrics]:  # fmt: skip
    """Cut the network; return its metrics before and after."""
    for name, rows in examples.items():
        if rows.labels is None:
            raise UserError(f"--target-rank: {name} has no labels to measure on")
    splits = {
        name: Batches(
            tokenise(rows, tokenizer, config.max_length, objective_of(task)),
            config.eval_batch_size,
            network.bank.mask.device,
        )
        for name, rows in examples.items()
    }
    before = evaluate_splits(network, task, splits)
    found.apply(network)
    return before, evaluate_splits(network, task, splits)


def _manifest(
    directory: Path, run: RunDir, config: RunConfig, options: ExportOptions, network: Network,
    findings: Findings, facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    before, after = (None, None) if findings.pruned is None else findings.pruned
    ranks = network.bank.mask.sum(1).long().tolist()
    return {
        "schema": SCHEMA,
        "created": now(),
        "format": options.name,
        "source": _source(run, config),
        "options": asdict(options),
        "versions": versions((*PACKAGES, *FORMATS[options.format].packages)),
        "check": asdict(findings.check),
        "metrics": {"run": findings.run, "before_pruning": before, "after_pruning": after},
        # "run": as the training evaluated; "export": before and after pruning, and the check
        "precision": {"run": findings.run_precision, "export": findings.precision},
        "ranks": dict(zip(network.adapters, ranks, strict=True)),
        **facts,
        "lost": None if findings.loss is None else asdict(findings.loss),
        **({} if findings.base is None else {"base": asdict(findings.base)}),
        **({} if findings.rounding is None else {"rounding": asdict(findings.rounding)}),
        "files": {
            file.relative_to(directory).as_posix(): _sha256(file)
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        },
    }


def _source(run: RunDir, config: RunConfig) -> dict[str, Any]:
    environment = run.read_json(run.environment)
    return {
        "run": str(run.path),
        "task": config.task,
        "method": config.method,
        "optimizer": config.optimizer,
        "criterion": config.criterion,
        "seed": config.seed,
        "model": config.model,
        "model_revision": environment.get("model_revision"),
        "backbone_sha256": environment.get("backbone_sha256"),
        "posterior_sha256": _sha256(run.posterior),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


# ---- where it goes


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `output`; a failure leaves neither behind."""
    absent = [parent for parent in output.parents if not parent.exists()]
    try:
        with replacing(output) as directory:
            yield directory
    except BaseException as error:
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()
        # an error of the system, not of a library
        if isinstance(error, OSError) and error.errno is not None:
            raise RunDirError(f"--output: cannot write {output}: {error.strerror}") from error
        raise
