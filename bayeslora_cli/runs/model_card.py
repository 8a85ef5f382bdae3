"""Parts of a model card that the README.md of a run and that of an export share."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from bayeslora_cli.config.catalogue import GLUE_TASKS, METHODS, OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.tasks.dialogue import RAW, USER
from bayeslora_cli.tasks.sources.rows.dialogues import prompt_role
from bayeslora_cli.tasks.sources.tables.table import listed
from bayeslora_cli.tasks.task import Task

GGUF = ".gguf"
"""End of the name of a file that holds a whole model."""
UNTAGGED = "text-regression"
"""A kind of task that hubs do not know, in the catalogue's `pipeline_tag`."""


def front_matter(
    config: RunConfig,
    task: Task,
    library: str,
    metrics: Mapping[str, Mapping[str, float]],
    form: str | None = None,
) -> str:
    """Write what model hubs read: base model, library, tags, and the metrics by split.

    The hub refuses a `base_model` that it does not know, so a directory is left out.

    Args:
        form: of an export, its format; None: of a run.
    """
    from huggingface_hub.repocard_data import EvalResult, ModelCardData  # imports slowly

    glue, pipeline = task.name in GLUE_TASKS, OBJECTIVES[task.objective].pipeline_tag
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type="nyu-mll/glue" if glue else _name(config, task),
            dataset_name=f"GLUE {task.name}" if glue else _name(config, task),
            dataset_config=task.name if glue else None,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, values in metrics.items()
        for metric, value in values.items()
    ]
    data = ModelCardData(
        base_model=config.model if on_the_hub(config.model) else None,
        library_name=library,
        # hubs have no tag for a score predicted from text, and would show classes
        pipeline_tag=None if pipeline == UNTAGGED else pipeline,
        tags=[
            *dict.fromkeys(
                ("bayeslora", form or config.method, config.optimizer)
                + (() if config.base_precision is None else (config.base_precision,))
                + (("regression",) if pipeline == UNTAGGED else ())
            )
        ],
        model_name=_title(config, task),
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def on_the_hub(model: str) -> bool:
    """Return whether --model is a name on the hub, not a directory or part of a Python package."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not Path(model).exists()


def base_model(model: str) -> tuple[list[str], str]:
    """Return Python code that names the base model on any machine: imports, and arguments of
    `from_pretrained`.

    A directory is named as it was typed; the reader must replace it.
    """
    if model.endswith(GGUF):
        where, _, file = model.rpartition("/")
        imports, name = path_in_python(where or ".")
        return imports, f"{name}, gguf_file={json.dumps(file, ensure_ascii=False)}"
    return path_in_python(model)


def path_in_python(model: str) -> tuple[list[str], str]:
    """Return imports and an expression that is a name on the hub, a path, or a place in a package.

    A path is named as it was typed; the reader must replace it.
    """
    package, _, inner = model.removeprefix("package:").partition("/")
    if not model.startswith("package:"):
        return [], json.dumps(model, ensure_ascii=False)
    imports = [f"from importlib.resources import files  # pip install {package}"]
    place = f'files("{package}") / "{inner}"' if inner else f'files("{package}")'
    return imports, f"str({place})"


def base_in_shell(model: str) -> str:
    """Return a shell word that names the base model: a path as it was typed, or a package's."""
    package, _, inner = model.removeprefix("package:").partition("/")
    if not model.startswith("package:"):
        return shlex.quote(model)
    found = f'from importlib.resources import files; print(files("{package}") / "{inner}")'
    return f'"$(python -c {shlex.quote(found)})"'


def trust_argument(config: RunConfig) -> str:
    """Return the argument that allows the model's own code, if the run allowed it; else ""."""
    return ", trust_remote_code=True" if config.trust_remote_code else ""


def literal(text: str) -> str:
    """Escape foreign text, in one line, so that Markdown shows it as it is: no HTML or links."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*<>\[\]|~&$#])", r"\\\1", line)


def code_span(text: str) -> str:
    """Escape foreign text for a Markdown code span, with its backticks."""
    line = "".join(c if c.isprintable() else " " for c in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"


def heading(config: RunConfig, task: Task) -> str:
    """Write a heading with the task, or the user's file, and the method."""
    return f"# {literal(_title(config, task))}\n"


def introduction(config: RunConfig, task: Task, steps: int) -> str:
    """Write what was trained, on what, and for how many steps."""
    classes, predicts = ", ".join(map(literal, task.classes)), OBJECTIVES[task.objective].predicts
    kinds = f"the classes {classes}" if classes else predicts
    entry = METHODS[config.method]
    kind = "target" if entry.free_rank is None else "initial"
    rank = f" {kind} rank {config.target_rank}," if entry.has_ranks else ""
    return (
        # no line begins with text from elsewhere: it could be a heading or a list
        f"{code_span(config.model)} fine-tuned with bayeslora on {literal(_name(config, task))}: "
        f"{kinds}\nfrom {listed([*map(literal, task.text_columns)])}; {_method(config)},\n"
        f"seed {config.seed},{rank} {steps} steps of {config.batch_size} examples."
    )


def measured_in(config: RunConfig) -> str:
    """Write the precision of a run's computation, and that of its frozen weights."""
    base = config.base_precision
    return config.precision + ("" if base is None else f", with the frozen weights in {base}")


def metric_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Write a table with one row for each metric of each split."""
    rows = [
        f"| {split} | {metric} | {value:.4f} |"
        for split, values in metrics.items()
        for metric, value in values.items()
    ]
    return "\n".join(["| split | metric | value |", "|---|---|---|", *rows, ""])


def code(python: str) -> str:
    """Write a block of Python code."""
    return f"```python\n{python}\n```\n"


def shell(commands: Sequence[str]) -> str:
    """Write a block of shell commands."""
    return "\n".join(["```sh", *commands, "```", ""])


def inputs(task: Task, config: RunConfig, tensors: str = "pt") -> list[str]:
    """Return statements that set `inputs` by `tokenizer`."""
    if own := OBJECTIVES[task.objective].inputs:
        return [line.format(length=config.max_length, tensors=tensors) for line in own]
    texts = ", ".join('["…"]' for _ in task.text_columns)
    return [
        "inputs = tokenizer(",
        f"    {texts}, truncation=True, max_length={config.max_length}, padding=True,",
        f'    return_tensors="{tensors}",',
        ")",
    ]


def prompt(task: Task, tensors: str = "pt") -> list[str]:
    """Return statements that set `inputs` to a prompt, as the rows of the training were made."""
    role = prompt_role(task.text_columns)
    raw = f'inputs = tokenizer("…", return_tensors="{tensors}")'
    if role == RAW:
        return [raw]
    chat = [
        'messages = [{"role": "user", "content": "…"}]',
        "inputs = tokenizer.apply_chat_template(",
        f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="{tensors}"',
        ")",
    ]
    if role == USER:
        return chat
    # rows of instructions are rendered by the chat template, if the tokenizer has one
    plain = raw.replace("…", r"### Instruction:\n…\n\n### Response:\n")
    return [
        "if tokenizer.chat_template:", *(f"    {line}" for line in chat), "else:", f"    {plain}",
    ]  # fmt: skip


def _title(config: RunConfig, task: Task) -> str:
    return f"{_name(config, task)} with {_method(config)}"


def _name(config: RunConfig, task: Task) -> str:
    return task.name if config.train_file is None else Path(config.train_file).name


def _method(config: RunConfig) -> str:
    return " + ".join(p for p in (config.method, config.optimizer, config.criterion) if p)
