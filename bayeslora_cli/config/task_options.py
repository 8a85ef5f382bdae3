"""`TaskOptions`: the options of `RunConfig` that say what is learned, and from which rows."""

from __future__ import annotations

from dataclasses import dataclass

from bayeslora_cli.config import catalogue, values
from bayeslora_cli.config.options import OWN, WHAT, beside, beside_any, option, unless

_LABELLED = beside("task", *catalogue.GLUE_TASKS, "demo")  # these have a validation split
_CHOSEN = beside("task", *catalogue.CHOICE_TASKS)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """What is learned, and from which rows: the first fields of `RunConfig`."""

    # fmt: off
    task: str = option(
        "rte", WHAT,
        f"{', '.join(catalogue.GLUE_TASKS)}; {', '.join(catalogue.CHOICE_TASKS)}; or demo, which "
        "is built in; a comma list trains a run each",
        default_text="", choices=catalogue.TASK_NAMES, sweep=values.parse_names, varies=-2,
        part_of_name="run", source=True, deep=False,
    )
    data: str | None = option(
        None, WHAT, "Directory of the task's files or of a set saved by datasets; else the hub",
        path=True, idle_when=(beside("task", "custom", "demo"),), source=True, deep=False,
    )
    choices: str | None = option(
        None, WHAT, "What of a choice is scored: whole answers, or letters that a prompt lists",
        default_text="letters for mmlu, else answers", choices=catalogue.CHOICES,
        idle_when=(unless("task", *catalogue.CHOICE_TASKS),), source=True,
    )
    train_file: str | None = option(
        None, OWN,
        "Training examples: .csv, .tsv, .jsonl, .json, .parquet, a set saved by datasets, or one "
        "on the hub, NAME:CONFIG@SPLIT", path=True, source=True, deep=False,
    )
    eval_file: str | None = option(
        None, OWN, "Examples to evaluate on",
        default_text="the data set's validation split, or --validation", path=True,
        source=True, deep=False,
    )
    text_columns: tuple[str, ...] | None = option(
        None, OWN, "One or two columns, comma-separated", default_text="well-known names",
        idle_when=(unless("task", "custom"),), source=True,
    )
    label_column: str | None = option(
        None, OWN,
        "Column of the label: strings or integers are classes, reals are scores to predict",
        default_text="label and the like", idle_when=(unless("task", "custom"),), source=True,
    )
    task_type: str | None = option(
        None, OWN, "What is learned: {choices}", default_text="told by columns and labels",
        source=True, choices=catalogue.OBJECTIVES, idle_when=(unless("task", "custom"),),
    )
    loss_on: str = option(
        catalogue.COMPLETIONS, OWN,
        "What counts in a causal model's loss: completions and what assistants say, or all",
        choices=catalogue.LOSS_ON, idle_when=(_LABELLED, _CHOSEN), source=True,
    )
    validation: float = option(
        0.1, OWN,
        "Share of the training rows to evaluate on, the same for all seeds, if there are no others",
        checks=(values.share,), idle_when=(beside_any("eval_file"), _LABELLED), source=True,
    )
    class_weights: str | None = option(
        None, OWN, "Weights of the classes in the loss: balanced, or LABEL=WEIGHT,…",
        default_text="all alike", checks=(values.parse_weights,),
    )
    temperature: float = option(
        0.05, OWN, "Embeddings: what similarities are divided by in the loss, or a comma list",
        checks=(values.positive_and_finite,), idle_when=(unless("task", "custom"),),
        sweep=values.parse_reals, varies=1, source=True, always_told=True,
    )
    pooling: str = option(
        catalogue.MEAN, OWN,
        "Embeddings: mean of the states of a text's tokens, or cls, the state of the first one",
        choices=catalogue.POOLINGS, idle_when=(unless("task", "custom"),), source=True,
        always_told=True,
    )
    model: str = option(
        "microsoft/deberta-v3-base", WHAT,
        "Backbone: hub name, directory, GGUF file, or package:NAME/PATH, one within a package",
        path=True, decides_code=True, deep=False,
    )
    # fmt: on
