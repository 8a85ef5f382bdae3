"""Writes the README.md of an export: what it is, how it was checked, and code that opens it."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora_cli.config.catalogue import FORMATS, OBJECTIVES
from bayeslora_cli.config.entries.objectives import WHOLE
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.findings import Findings
from bayeslora_cli.export.formats.format import Format, Snippet
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.runs import model_card
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.task import Task


def export_card(
    form: Format,
    options: ExportOptions,
    config: RunConfig,
    task: Task,
    steps: int,
    findings: Findings,
    commands: Sequence[str] = (),
) -> str:
    """Return the text.

    Args:
        steps: number of training steps.
        commands: what serves the export, run in its directory.
    """
    library = FORMATS[options.format].library
    # what users of hubs open a whole model of this kind with
    shown = OBJECTIVES[task.objective].library if library == WHOLE else library
    rank = options.target_rank
    pruned = "" if rank is None else f" Pruned to rank {rank} after training."
    reopened = "Read back" if library == "bayeslora" else "Reopened without bayeslora"
    losses = [str(found) for found in _effects(findings)]
    return "\n".join(
        [
            model_card.front_matter(config, task, shown, findings.metrics, options.format),
            model_card.heading(config, task),
            model_card.introduction(config, task, steps) + pruned + "\n",
            f"{form.description(options)}\n{reopened}, {findings.check}.\n",
            *(f"{loss[0].upper()}{loss[1:]}.\n" for loss in losses),
            f"Metrics, measured in {findings.metrics_precision}:\n",
            model_card.metric_table(findings.metrics),
            model_card.code(code(form, config, task)),
            *(["Served from this directory by\n", model_card.shell(commands)] if commands else []),
        ]
    )


def _effects(findings: Findings) -> list[object]:
    """Return what an export changes in the run's predictions."""
    found = (findings.base, findings.loss, findings.rounding)
    return [effect for effect in found if effect is not None]


def code(form: Format, config: RunConfig, task: Task) -> str:
    """Return Python that opens the export from its directory and predicts."""
    snippet = form.snippet(config, task)
    trust = model_card.trust_argument(config)
    hub = ", or the name of its repository on the hub" if snippet.opens_hub_names else ""
    classes = ", ".join(sorted({"AutoTokenizer", *snippet.transformers}))
    return "\n".join(
        [
            *(f"{line}\n" for line in snippet.standard),
            *packages(snippet, task),
            f"from transformers import {classes}",
            "",
            f'directory = "."  # of this file{hub}',
            f"tokenizer = AutoTokenizer.from_pretrained(directory{trust})",
            *statements(snippet, config, task),
        ]
    )


def packages(snippet: Snippet, task: Task) -> list[str]:
    """Return the imports besides those from the standard library and from transformers."""
    generated = OBJECTIVES[task.objective].generates and snippet.generate
    return [*(() if generated else snippet.predict_packages), *snippet.packages]


def statements(snippet: Snippet, config: RunConfig, task: Task) -> list[str]:
    """Return the statements behind those that set `tokenizer`: inputs, model, what it says."""
    if OBJECTIVES[task.objective].generates:
        inputs = model_card.prompt(task, snippet.tensors)
        if snippet.generate:
            return [*inputs, *snippet.load, *snippet.generate]
    else:
        inputs = model_card.inputs(task, config, snippet.tensors)
    entry = OBJECTIVES[task.objective]
    predict = [line.replace(".logits", f".{entry.output}") for line in snippet.predict]
    return [*inputs, *snippet.load, *predict, *objective_of(task).reading]
