"""`bayeslora export`: a finished run in a form for elsewhere, reopened and compared first."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.evaluation.forward_passes import Metrics, describe, evaluate_splits
from bayeslora_cli.evaluation.run_loading import load_run, of_the_training, split_names
from bayeslora_cli.export.card import export_card
from bayeslora_cli.export.formats.integer_codes import load_quantized, save_quantized
from bayeslora_cli.export.formats.onnx_model import open_onnx, write_onnx
from bayeslora_cli.export.formats.peft_adapter import merge, save_lora_adapter, save_peft_adapter
from bayeslora_cli.export.hub_upload import upload
from bayeslora_cli.export.independent_reader import Logits, load_merged, open_adapter, open_merged
from bayeslora_cli.export.quantization_loss import Lost, lose
from bayeslora_cli.export.request import (
    BOUNDS,
    MANIFEST,
    ONNX_PACKAGES,
    ExportOptions,
    check_options,
    check_output,
)
from bayeslora_cli.export.verification import (
    Check,
    batches_of,
    compare,
    logits_from,
    random_rows,
    run_logits,
)
from bayeslora_cli.methods.adalora.pruning import prune
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.backbones.loading import Labels, backbone_path
from bayeslora_cli.runs.atomic_write import replacing, write_json
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.environment import now, versions
from bayeslora_cli.runs.model_card import on_the_hub
from bayeslora_cli.tasks.sources.comparison_rows import check_data_is_read, load_file
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")

SCHEMA = 1
ADAPTERS = ("adalora", "lora", "quantized")
"""Formats that need their base model beside them."""
PACKAGES = ("bayeslora", "torch", "transformers", "peft", "safetensors")


def export_run(
    path: Path,
    options: ExportOptions,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    push_to_hub: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write an export, whole and checked or not at all; returns its directory and its manifest.

    Args:
        output: None: RUN/export/FORMAT, with -rR after pruning to rank R.
        push_to_hub: name of a repository to upload to at the very end.
    Raises:
        UserError: no run, options that do not fit it, data or model that is missing.
        BayesloraError: the reopened export does not predict what the run predicts.
    """
    run = RunDir.open(path)
    # exports are in fp32, and compared in it, whatever the run was computed in
    trained = run.read_config(trust_remote_code=options.trust_remote_code)
    config, task = replace(trained, precision="fp32"), run.read_task()
    result = run.read_result()
    check_options(options, config, push_to_hub)
    if push_to_hub is not None and options.format in ADAPTERS and not on_the_hub(config.model):
        logger.warning(
            "--push-to-hub %s: the adapter's base model, %s, is not on the hub, and "
            "adapter_config.json will name it by its path on this machine, %s; others need a copy "
            "of it, or --format merged",
            push_to_hub, config.model, backbone_path(config.model),
        )  # fmt: skip
    if output is None:
        ending = "" if options.target_rank is None else f"-r{options.target_rank}"
        output = run.exports / f"{options.name}{ending}"
    check_output(output, overwrite=overwrite)
    examples = _examples(run, options, config, task)

    network, tokenizer, _ = load_run(run, config, Labels(classes=task.classes), options.device)
    before = after = None
    if options.target_rank is not None:
        before, after = _prune(run, network, tokenizer, config, task, examples, options.target_rank)
    if examples:
        inputs, found = next(iter(examples.items()))
        few = _first(found, options.check_rows)
        rows = tokenise(few, tokenizer, config.max_length, regression=task.regression)
    else:
        inputs, rows = "random", random_rows(tokenizer, options.check_rows, config.max_length)
    batches = batches_of(rows)
    lost = lose(network, options.format, batches)
    expected = run_logits(network, batches)
    ranks = network.bank.mask.sum(1).long().tolist()

    with _writing(output) as directory:
        facts = _write(directory, options, config, network, tokenizer)
        check = compare(
            expected,
            _reopen(directory, options.format, config, network),
            batches,
            bound=BOUNDS[options.format],
            inputs=options.file if options.file is not None else inputs,
        )
        metrics = result["best_at_budget"]["metrics"]
        text = export_card(
            options.name, config, task, result["steps"], after or metrics,
            trained.precision if after is None else config.precision, str(check),
            options.target_rank, lost,
        )  # fmt: skip
        (directory / "README.md").write_text(text, encoding="utf-8")
        extra = ONNX_PACKAGES if options.format == "onnx" else ()
        manifest = {
            "schema": SCHEMA,
            "created": now(),
            "format": options.name,
            "source": _source(run, config),
            "options": asdict(options),
            "versions": versions((*PACKAGES, *extra)),
            "check": asdict(check),
            "metrics": {"run": metrics, "before_pruning": before, "after_pruning": after},
            # "run": as the training evaluated; "export": before and after pruning, and the check
            "precision": {"run": trained.precision, "export": config.precision},
            "ranks": dict(zip(network.adapters, ranks, strict=True)),
            **facts,
            "lost": None if lost is None else asdict(lost),
            "files": {
                file.relative_to(directory).as_posix(): _sha256(file)
                for file in sorted(directory.rglob("*"))
                if file.is_file()
            },
        }
        write_json(directory / MANIFEST, manifest)
    if push_to_hub is not None:
        upload(output, push_to_hub)
    return output, manifest


def describe_export(manifest: dict[str, Any]) -> list[str]:
    """What was measured, a line each."""
    metrics, precision = manifest["metrics"], manifest["precision"]["export"]
    lines = []
    if metrics["before_pruning"] is not None:
        lines = [
            f"before pruning, in {precision}: {describe(metrics['before_pruning'])}",
            f"after pruning to rank {manifest['options']['target_rank']}, in {precision}: "
            f"{describe(metrics['after_pruning'])}",
        ]
    if manifest["lost"] is not None:
        lines.append(str(Lost(**manifest["lost"])))
    return [*lines, str(Check(**manifest["check"]))]


def _examples(
    run: RunDir, options: ExportOptions, config: RunConfig, task: Task
) -> dict[str, Examples]:
    """The rows to check and to measure on; none for a check on random tokens."""
    if options.check_inputs == "random":
        return {}
    given = ["--train-file", "--eval-file"]
    if options.data is not None:
        check_data_is_read(config, options.data, options.file)
        config = replace(config, data=options.data)
    else:
        given.append("--data")
    if options.file is not None:
        return load_file(options.file, task)
    try:
        with of_the_training(run, *given):
            return load_examples(config, split_names(task, "validation"), task=task)[1]
    except UserError as error:
        if options.target_rank is not None:
            raise
        raise UserError(f"{error}; --check-inputs random checks without data") from error


# ---- the parts of an export


def _first(examples: Examples, rows: int) -> Examples:
    return Examples(
        first=examples.first[:rows],
        second=None if examples.second is None else examples.second[:rows],
        labels=None,
    )


def _prune(
    run: RunDir, network: Network, tokenizer: Any, config: RunConfig, task: Task,
    examples: dict[str, Examples], target_rank: int,
) -> tuple[Metrics, Metrics]:  # fmt: skip
    """Prune the network; its metrics before and after."""
    mask = prune(run, network, target_rank)
    for name, found in examples.items():
        if found.labels is None:
            raise UserError(f"--target-rank: {name} has no labels to measure on")
    splits = {
        name: Batches(
            tokenise(found, tokenizer, config.max_length, regression=task.regression),
            config.eval_batch_size,
            mask.device,
        )
        for name, found in examples.items()
    }
    before = evaluate_splits(network, task, splits)
    network.bank.mask.copy_(mask)
    return before, evaluate_splits(network, task, splits)


def _write(
    directory: Path, options: ExportOptions, config: RunConfig, network: Network, tokenizer: Any
) -> dict[str, Any]:
    """The format's files and the tokenizer's; returns what the manifest should know of them.

    `merged` and `onnx` use the network up: its adapters are merged in.
    """
    mean, mask = network.bank.mean, network.bank.mask
    facts: dict[str, Any] = {}
    if options.format == "adalora":
        config = replace(config, target_rank=options.target_rank or config.target_rank)
        save_peft_adapter(network, config, mean, mask, directory)
    elif options.format == "lora":
        save_lora_adapter(network, config, mean, mask, directory, one_rank=options.uniform_rank)
    elif options.format == "quantized":
        facts = save_quantized(network, config, mean, mask, directory)
    elif options.format == "merged":
        _save_merged(network, directory)
    else:
        whole = directory / "merged"
        _save_merged(network, whole)
        model = load_merged(whole, trust_remote_code=config.trust_remote_code)
        example = batches_of(random_rows(tokenizer, 6, config.max_length))[0]
        facts["opset"] = write_onnx(model, example, directory)
        model.config.save_pretrained(directory)
        shutil.rmtree(whole)
    tokenizer.save_pretrained(directory)
    return facts


def _save_merged(network: Network, directory: Path) -> None:
    module = merge(network, network.bank.mean, network.bank.mask)
    # cloned: safetensors refuses tensors that share the bank's storage
    state = {n: v.detach().to("cpu", copy=True) for n, v in module.state_dict().items()}
    module.save_pretrained(
        directory, state_dict={n: value.contiguous() for n, value in state.items()}
    )


def _reopen(directory: Path, form: str, config: RunConfig, network: Network) -> Logits:
    device, trust = network.bank.theta.device, config.trust_remote_code
    if form == "onnx":
        return open_onnx(directory)
    if form == "quantized":
        return logits_from(load_quantized(directory, device, trust_remote_code=trust))
    if form == "merged":
        return open_merged(directory, device, trust_remote_code=trust)
    torch.seed()  # what the base lacks is drawn anew: the export must bring it
    return open_adapter(directory, backbone_path(config.model), device, trust_remote_code=trust)


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
    """A temporary directory that becomes `output`; after a failure nothing is left of either."""
    absent = [parent for parent in output.parents if not parent.exists()]
    try:
        with replacing(output) as directory:
            yield directory
    except BaseException as error:
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a library's
            raise RunDirError(f"--output: cannot write {output}: {error}") from error
        raise
