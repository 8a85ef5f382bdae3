"""All methods, optimizers, criteria, export formats and kinds of tasks, by name.

An entry holds the facts that the command line needs before anything heavy is imported, and names
the place of the implementation. No code outside the implementation's own folder branches on a name:
it reads a fact here, or asks the object that `implementation` returns. The tables are read when
they are needed and never copied, so that a program can add entries before it trains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bayeslora_cli.config.entries.base_precisions import BASE_PRECISIONS as BASE_PRECISIONS
from bayeslora_cli.config.entries.metrics import METRICS as METRICS
from bayeslora_cli.config.entries.objectives import ENCODE as ENCODE
from bayeslora_cli.config.entries.objectives import OBJECTIVES as OBJECTIVES
from bayeslora_cli.config.entries.objectives import ObjectiveEntry as ObjectiveEntry

GLUE_TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
CHOICE_TASKS = (
    "mmlu", "arc-easy", "arc-challenge", "openbookqa", "boolq", "winogrande", "piqa", "siqa",
)  # fmt: skip
ANSWERS, LETTERS = CHOICES = ("answers", "letters")  # what of a choice is scored
MEAN, CLS = POOLINGS = ("mean", "cls")  # of the states of a text's tokens
TASK_NAMES = (*GLUE_TASKS, *CHOICE_TASKS, "demo", "custom")  # custom: a user's own files
AUTO, ON, OFF = SWITCH = ("auto", "on", "off")  # of --compile and --packing
# of a block's activations, in the backward pass: time of a step relative to "off"
RECOMPUTED = {"off": 1.0, "blocks": 1.33, "selective": 1.05}
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PRECISIONS = ("fp32", "tf32", "bf16")
LR_SCHEDULES = ("linear", "cosine", "constant", "boost")
ANEW, KEPT = FROM_RANKS = ("anew", "kept")  # ranks of a run that begins with another's
ZERO, FROM = PRIORS = ("zero", "from")
DECAYED = ("all", "matrices")  # what AdamW's weight decay acts on
BLORA_MODES = ("both", "quant", "rank")
REGULARISERS = ("const", "bop")
COMPLETIONS, EVERYTHING = LOSS_ON = ("completions", "all")  # what of a row counts in the loss
LAST = 1000
"""Default `place` of an entry: after all entries that set it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodEntry:
    """A way to make a backbone trainable: a `methods.method.Method`."""

    implementation: str
    """Place of the object, as module:name."""
    default_optimizer: str
    allocates_ranks: bool
    """Whether a criterion allocates its ranks."""
    formats: tuple[str, ...]
    """Export formats of its own layers, the default first; see also `formats_of`."""
    options: tuple[str, ...] = ()
    """Fields of `RunConfig` that apply to it, among those that do not apply to every method."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By option, a clause that tells why it does not apply, if the method's name is not enough."""
    initial_rank: Callable[[int], int] = lambda target: target
    """Default initial rank for a target rank."""
    free_rank: int | None = None
    """Default initial rank if the method has no target; it then names the run directory."""
    fixed_rank: bool = False
    """Whether the ranks stay constant, so that the initial rank is the target rank."""
    title: str = ""
    """What papers call it; empty: its name here."""
    note: str = ""
    """Remark that the help adds to the name."""
    place: int = LAST
    """Where its rows stand in the table of results."""

    @property
    def has_ranks(self) -> bool:
        """Whether its layers have ranks; else the weights themselves are trained."""
        return "init_rank" in self.options


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerEntry:
    """An optimizer on the flat bank: a `bayes.optimizer.BankOptimizer`."""

    implementation: str
    """Place of the function that builds it, as module:name."""
    posterior: bool
    """Whether it keeps a posterior, so that sigma is known."""
    title: str = ""
    """What papers call it; empty: its name here."""
    options: tuple[str, ...] = ()
    """Fields of `RunConfig` that apply to it, among those that do not apply to every optimizer."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By option, a clause that tells why it does not apply, if the name is not enough."""
    place: int = LAST
    """Where its rows stand in the table of results, among those of a method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CriterionEntry:
    """An importance criterion: a function of `bayes.criteria.ElementStatistics`."""

    implementation: str | Callable[[Any], Any]
    """Place of the function, as module:name; or the function, if a script registered it."""
    needs_posterior: bool = False
    """Whether it reads sigma, which only a variational optimizer has."""
    needs_gradient: bool = False
    """Whether it reads the sensitivity averages, which cost a pass over all elements per step."""
    place: int = LAST
    """Where its rows stand in the table of results, among those of an optimizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatEntry:
    """An export format: an `export.formats.format.Format`."""

    implementation: str
    """Place of the object, as module:name."""
    bound: float
    """Largest difference of a logit from the run's, relative to the largest logit if above 1."""
    library: str
    """The library that opens it, as the hub names it; `bayeslora`: only this package opens it."""
    every_method: bool = False
    """Whether runs of every method can use it; else the entries of methods list it."""
    needs_base: bool = False
    """Whether the base model is needed to open it."""
    options: tuple[str, ...] = ()
    """Fields of `ExportOptions` that it takes, among those that only some formats take."""
    packages: tuple[str, ...] = ()
    """Packages that it needs in addition to bayeslora's requirements."""
    extra: str | None = None
    """bayeslora's optional dependency that installs `packages`."""


_LOW_RANK = ("init_rank", "alpha", "target_modules")
_GATES = (
    "blora_mode", "lambda_quant", "lambda_rank", "bit_ladder", "quantize_base", "reg", "gate_lr",
    "range_lr",
)  # fmt: skip
_VARIATIONAL = (
    "ess", "ess_per_example", "hess_init", "ivon_beta1", "ivon_beta2", "clip_radius",
    "train_samples", "prior",
)  # fmt: skip

METHODS: dict[str, MethodEntry] = {
    "adalora": MethodEntry(
        implementation="bayeslora_cli.methods.adalora.method:ADALORA",
        title="AdaLoRA",
        default_optimizer="ivon",
        allocates_ranks=True,
        formats=("adalora", "lora", "gguf"),
        options=(
            *_LOW_RANK,
            "target_rank",
            "t_init",
            "t_final",
            "delta_t",
            "orth_reg",
            "from_ranks",
        ),
        initial_rank=lambda target: -(-3 * target // 2),  # 3 for 2, 6 for 4: the paper's runs
        place=2,
    ),
    "lora": MethodEntry(
        implementation="bayeslora_cli.methods.lora:LORA",
        title="LoRA",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("lora", "gguf"),
        options=(*_LOW_RANK, "target_rank"),
        fixed_rank=True,
        note="fixed rank",
        place=1,
    ),
    "full": MethodEntry(
        implementation="bayeslora_cli.methods.full:FULL",
        title="full fine-tuning",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=(),
        place=0,
    ),
    "blora": MethodEntry(
        implementation="bayeslora_cli.methods.blora.method:BLORA",
        title="B-LoRA",
        default_optimizer="adamw",
        allocates_ranks=False,
        formats=("quantized", "lora", "gguf"),
        options=(*_LOW_RANK, "t_init", "t_final", *_GATES),
        reasons={"target_rank": "whose gates find the ranks from --init-rank on"},
        free_rank=8,
        note="ranks and bit widths by gates",
        place=3,
    ),
}
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "ivon": OptimizerEntry(
        implementation="bayeslora_cli.bayes.ivon:build",
        title="IVON",
        posterior=True,
        options=_VARIATIONAL,
        reasons={
            "max_grad_norm": "whose --clip-radius bounds each element of the step",
            "weight_decay_of": "whose --weight-decay belongs to the prior of all weights",
        },
        place=1,
    ),
    "adamw": OptimizerEntry(
        implementation="bayeslora_cli.bayes.adamw:build",
        title="AdamW",
        posterior=False,
        options=("weight_decay_of", "max_grad_norm"),
        place=0,
    ),
}
# the first criterion that an optimizer allows is its default
CRITERIA: dict[str, CriterionEntry] = {
    "snr": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:snr", needs_posterior=True, place=2
    ),
    "sensitivity": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:sensitivity", needs_gradient=True, place=0
    ),
    "snr-abs": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:snr_abs", needs_posterior=True, place=1
    ),
    "magnitude": CriterionEntry(implementation="bayeslora_cli.bayes.criteria:magnitude", place=3),
    "precision": CriterionEntry(
        implementation="bayeslora_cli.bayes.criteria:precision", needs_posterior=True, place=4
    ),
}

_WRITERS = "bayeslora_cli.export.formats"
FORMATS: dict[str, FormatEntry] = {
    "adalora": FormatEntry(
        implementation=f"{_WRITERS}.peft_adapter:ADALORA", bound=1e-5, library="peft",
        needs_base=True,
    ),
    "lora": FormatEntry(
        implementation=f"{_WRITERS}.peft_adapter:LORA", bound=1e-5, library="peft",
        needs_base=True, options=("patterns", "uniform_rank"),
    ),
    "gguf": FormatEntry(
        implementation=f"{_WRITERS}.gguf_adapter:GGUF", bound=1e-5, library="gguf",
        needs_base=True, packages=("gguf",), extra="gguf",
    ),
    "merged": FormatEntry(
        implementation=f"{_WRITERS}.merged_model:MERGED", bound=1e-5, library="transformers",
        every_method=True, options=("precision",),
    ),
    "onnx": FormatEntry(
        implementation=f"{_WRITERS}.onnx_model:ONNX", bound=1e-4, library="onnx",
        every_method=True, packages=("onnx", "onnxruntime", "onnxscript"), extra="onnx",
    ),
    "quantized": FormatEntry(
        implementation=f"{_WRITERS}.integer_codes:QUANTIZED", bound=0.0, library="bayeslora",
        needs_base=True,
    ),
}  # fmt: skip

# kind of a posterior, as its file names it -> module:name of the `bayes.posterior.Posterior`
POSTERIORS = {"bayeslora-posterior-1": "bayeslora_cli.bayes.gaussian:FactorisedGaussian"}


def criteria_of(method: str, optimizer: str) -> tuple[str, ...]:
    """Return the criteria that a method and an optimizer allow, the default first; () if none."""
    if not METHODS[method].allocates_ranks:
        return ()
    known = OPTIMIZERS[optimizer].posterior
    return tuple(name for name, c in CRITERIA.items() if known or not c.needs_posterior)


def formats_of(method: str) -> tuple[str, ...]:
    """Return the export formats of a method's runs, the default first."""
    whole = (name for name, entry in FORMATS.items() if entry.every_method)
    return (*METHODS[method].formats, *whole)


def implementation(place: Any) -> Any:
    """Return the object that an entry holds or names as module:name, which is imported now.

    Raises:
        ImportError, AttributeError: there is no such object.
    """
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
