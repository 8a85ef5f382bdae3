"""What there is to choose from: tasks, methods, optimizers, criteria, trackers."""

from __future__ import annotations

GLUE_TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")


TASK_NAMES = (*GLUE_TASKS, "demo", "custom")  # custom: a user's own files


# criterion by method and optimizer, the default first; none: the method allocates nothing
COMBINATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("adalora", "ivon"): ("snr", "sensitivity", "snr-abs", "magnitude", "precision"),
    ("adalora", "adamw"): ("sensitivity", "magnitude"),
    ("lora", "adamw"): (),
    ("lora", "ivon"): (),
    ("full", "adamw"): (),
    ("full", "ivon"): (),
    ("blora", "adamw"): (),
    ("blora", "ivon"): (),
}


DEFAULT_OPTIMIZER = {"adalora": "ivon", "lora": "adamw", "full": "adamw", "blora": "adamw"}


METHODS = tuple(DEFAULT_OPTIMIZER)


OPTIMIZERS = ("ivon", "adamw")


CRITERION_NAMES = COMBINATIONS["adalora", "ivon"]


COMPILE = ("auto", "on", "off")


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


PRECISIONS = ("fp32", "tf32", "bf16")


LR_SCHEDULES = ("linear", "boost")


BLORA_MODES = ("both", "quant", "rank")


REGULARISERS = ("const", "bop")
