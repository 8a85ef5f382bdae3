"""Parts of a model card: what a run's README.md and an export's have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.tasks.task import Task


def front_matter(config: RunConfig, library: str) -> str:
    """What model hubs read.

    The hub refuses a `base_model` that is no name on it, so that a directory is not named.
    """
    base = [f"base_model: {config.model}"] if on_the_hub(config.model) else []
    lines = [
        "---",
        *base,
        f"library_name: {library}",
        "pipeline_tag: text-classification",
        f"tags: [bayeslora, {config.method}, {config.optimizer}]",
        "---\n",
    ]
    return "\n".join(lines)


def on_the_hub(model: str) -> bool:
    """Whether --model is a name on the hub: no directory, and nothing in a Python package."""
    named = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is not None
    return named and not Path(model).exists()


def base_model(model: str) -> tuple[list[str], str]:
    """Python that names the base model on any machine: its imports, and an expression.

    A directory is named as it was typed: the reader has to put another in its place.
    """
    package, _, inner = model.removeprefix("package:").partition("/")
    if not model.startswith("package:"):
        return [], json.dumps(model, ensure_ascii=False)
    imports = [f"from importlib.resources import files  # pip install {package}"]
    return imports, f'str(files("{package}") / "{inner}")'


def heading(config: RunConfig, task: Task) -> str:
    """The task, or the file of one's own, and how it was learnt."""
    return f"# {_name(config, task)} with {_method(config)}\n"


def introduction(config: RunConfig, task: Task, steps: int) -> str:
    """What was trained, on what, and for how long."""
    kinds = f"the classes {', '.join(task.classes)}" if task.classes else "a score"
    rank = f"{'initial' if config.method == 'blora' else 'target'} rank {config.target_rank}"
    return (
        f"`{config.model}` fine-tuned with bayeslora on {_name(config, task)}: {kinds} from\n"
        f"{' and '.join(task.text_columns)}; {_method(config)}, seed {config.seed}, {rank},\n"
        f"{steps} steps of {config.batch_size} examples."
    )


def metric_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row a split and metric."""
    rows = [
        f"| {split} | {metric} | {value:.4f} |"
        for split, values in metrics.items()
        for metric, value in values.items()
    ]
    return "\n".join(["| split | metric | value |", "|---|---|---|", *rows, ""])


def code(python: str) -> str:
    """A block of Python."""
    return f"```python\n{python}\n```\n"


def _name(config: RunConfig, task: Task) -> str:
    return task.name if config.train_file is None else Path(config.train_file).name


def _method(config: RunConfig) -> str:
    return " + ".join(p for p in (config.method, config.optimizer, config.criterion) if p)
