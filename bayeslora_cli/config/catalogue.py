"""What there is to choose from, by name: methods, optimizers, criteria, formats, tasks.

An entry holds the facts that the command line needs before anything heavy is imported, and says
where the implementation is. Nothing outside the implementation's own folder branches on a name: it
reads a fact here, or asks the object that `implementation` returns.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

GLUE_TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
TASK_NAMES = (*GLUE_TASKS, "demo", "custom")  # custom: a user's own files
COMPILE = ("auto", "on", "off")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PRECISIONS = ("fp32", "tf32", "bf16")
LR_SCHEDULES = ("linear", "boost")
BLORA_MODES = ("both", "quant", "rank")
REGULARISERS = ("const", "bop")


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodEntry:
    """A way to make a backbone trainable: a `methods.method.Method`."""

    implementation: str
    """module:name of the object."""
    default_optimizer: str
    allocates_ranks: bool
    """Whether a criterion allocates its ranks."""
    formats: tuple[str, ...]
    """Export formats that its runs have, the usual one first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerEntry:
    """An optimizer on the flat bank: a `bayes.optimizer.BankOptimizer`."""

    implementation: str
    """module:name of the function that builds it."""
    posterior: bool
    """Whether it keeps a posterior, so that sigma is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CriterionEntry:
    """An importance criterion: a function of `bayes.criteria.ElementStatistics`."""

    implementation: str
    """module:name of the function."""
    needs_posterior: bool = False
    """Whether it reads sigma, which only a variational optimizer has."""
    needs_gradient: bool = False
    """Whether it reads the sensitivity averages, which cost a pass over all elements a step."""


METHODS: dict[str, MethodEntry] = {
    "adalora": MethodEntry(
        implementation="bayeslora_cli.methods.adalora.method:ADALORA",
        default_optimizer="ivon",
        allocates_ranks=True,
        formats=("adalora", "lora", "merged", "onnx"),
    ),
    "lora": MethodEntry(
        implementation="bayeslora_cli.methods.lora:LORA",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("lora", "merged", "onnx"),
    ),
    "full": MethodEntry(
        implementation="bayeslora_cli.methods.full:FULL",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("merged", "onnx"),
    ),
    "blora": MethodEntry(
        implementation="bayeslora_cli.methods.blora.method:BLORA",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("quantized", "lora", "merged", "onnx"),
    ),
}
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "ivon": OptimizerEntry(implementation="bayeslora_cli.bayes.ivon:build", posterior=True),
    "adamw": OptimizerEntry(implementation="bayeslora_cli.bayes.adamw:build", posterior=False),
}
# the first that an optimizer allows is its default
CRITERIA: dict[str, CriterionEntry] = {
    "snr": CriterionEntry(implementation="bayeslora_cli.bayes.criteria:snr", needs_posterior=True),
    "sensitivity": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:sensitivity", needs_gradient=True
    ),
    "snr-abs": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:snr_abs", needs_posterior=True
    ),
    "magnitude": CriterionEntry(implementation="bayeslora_cli.bayes.criteria:magnitude"),
    "precision": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:precision", needs_posterior=True
    ),
}


def criteria_of(method: str, optimizer: str) -> tuple[str, ...]:
    """Criteria that a method and an optimizer allow, the default first; () where none allocates."""
    if not METHODS[method].allocates_ranks:
        return ()
    known = OPTIMIZERS[optimizer].posterior
    return tuple(name for name, c in CRITERIA.items() if known or not c.needs_posterior)


def implementation(place: str) -> Any:
    """The object that an entry names as module:name, imported now.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
