"""`RunConfig`: everything that decides a run, validated as a whole."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bayeslora_cli.config.catalogue import (
    BLORA_MODES,
    COMPILE,
    CRITERIA,
    LR_SCHEDULES,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    REGULARISERS,
    TASK_NAMES,
    TRACKERS,
    criteria_of,
)
from bayeslora_cli.config.values import parse_interval, parse_ladder
from bayeslora_cli.errors import ConfigError

LARGEST_PENALTY = 1e9


def _option(default: Any, flag: str, *, affects_result: bool = True) -> Any:
    return field(default=default, metadata={"flag": flag, "affects_result": affects_result})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run. Each field is an option of `bayeslora train`."""

    task: str = _option("rte", "--task")
    """Name of the task."""
    data: str | None = _option(None, "--data")
    """Directory of the task's data; None: the hub."""
    train_file: str | None = _option(None, "--train-file")
    """File or hub data set of the task `custom`."""
    eval_file: str | None = _option(None, "--eval-file")
    """Labelled file or hub data set to evaluate on; None: the hub's validation split."""
    text_columns: tuple[str, ...] | None = _option(None, "--text-columns")
    """One or two columns of `train_file`; None: known names."""
    label_column: str | None = _option(None, "--label-column")
    """Column of `train_file`; None: a known name."""
    model: str = _option("microsoft/deberta-v3-base", "--model")
    """Hub name or directory of the backbone."""
    method: str = _option("adalora", "--method")
    """adalora, lora, blora or full."""
    optimizer: str = _option("ivon", "--optimizer")
    """ivon or adamw."""
    criterion: str | None = _option("snr", "--criterion")
    """Importance criterion of the allocation; None where the method allocates nothing."""
    target_rank: int = _option(2, "--target-rank")
    """Mean rank of a matrix at the end; the fixed rank of lora; of blora the initial one."""
    init_rank: int = _option(3, "--init-rank")
    """Rank of every matrix at the start."""
    target_modules: tuple[str, ...] | None = _option(None, "--target-modules")
    """Name endings of the adapted layers, or all-linear; None: the backbone's own."""
    alpha: float = _option(32.0, "--alpha")
    """Adapter output is scaled by alpha / initial rank."""
    orth_reg: float = _option(0.1, "--orth-reg")
    """Weight of AdaLoRA's orthogonality penalty."""
    t_init: int = _option(0, "--t-init")
    """Steps before the first pruning; blora: before the gates."""
    t_final: int = _option(1, "--t-final")
    """Steps at the end with ranks and widths fixed."""
    delta_t: int = _option(1, "--delta-t")
    """Steps between two allocations."""
    blora_mode: str = _option("both", "--blora-mode")
    """What blora's gates are over: both, quant (bit widths) or rank."""
    lambda_quant: float = _option(1e-3, "--lambda-quant")
    """Weight of the penalty on bit widths, a quantizer."""
    lambda_rank: float = _option(0.1, "--lambda-rank")
    """Weight of the penalty on ranks, a matrix."""
    bit_ladder: str = _option("2,4,8,16", "--bit-ladder")
    """Widths that a quantizer may have, as `parse_ladder` reads them."""
    quantize_base: bool = _option(False, "--quantize-base")
    """The frozen weights are quantized as well."""
    reg: str = _option("const", "--reg")
    """How widths weigh in the penalty: const, or bop, by what they cost."""
    gate_lr: float = _option(1e-2, "--gate-lr")
    """AdamW's constant learning rate of the gates' logits."""
    range_lr: float = _option(1e-2, "--range-lr")
    """The same of the logarithms of the quantizers' ranges."""
    epochs: float = _option(3.0, "--epochs")
    """Passes over the training data."""
    max_steps: int | None = _option(None, "--max-steps")
    """Optimisation steps; overrides epochs."""
    batch_size: int = _option(32, "--batch-size")
    """Examples an optimisation step, over all micro-batches."""
    group_by_length: bool = _option(False, "--group-by-length")
    """Put examples of like length into a batch, so that little is padded."""
    grad_accum: int = _option(1, "--grad-accum")
    """Micro-batches that a batch is split into."""
    max_length: int = _option(128, "--max-length")
    """Tokens an example at the most."""
    dropout: float | None = _option(None, "--dropout")
    """Probability of every dropout of the backbone; None: the backbone's own."""
    lr: float = _option(1e-3, "--lr")
    """Learning rate that decays to 0."""
    lr_schedule: str = _option("linear", "--lr-schedule")
    """linear, or boost: a plateau of its own height first."""
    boost_lr: float | None = _option(None, "--boost-lr")
    """Learning rate of the plateau."""
    boost_until_step: int = _option(0, "--boost-until-step")
    """Step at which the plateau ends."""
    warmup_steps: int = _option(0, "--warmup-steps")
    """Steps from a learning rate of 0 to the first height."""
    weight_decay: float = _option(0.0, "--weight-decay")
    """AdamW's decoupled decay, or delta, IVON's prior precision over ess."""
    ess: float | None = _option(None, "--ess")
    """IVON's effective sample size; None: `ess_per_example` times the training examples."""
    ess_per_example: float = _option(1.0, "--ess-per-example")
    """IVON's effective sample size over the number of training examples."""
    hess_init: float = _option(1.0, "--hess-init")
    """IVON's h0."""
    ivon_beta1: float = _option(0.9, "--ivon-beta1")
    """IVON's momentum."""
    ivon_beta2: float = _option(0.99999, "--ivon-beta2")
    """IVON's average of the Hessian."""
    clip_radius: float = _option(1e-3, "--clip-radius")
    """IVON clips each preconditioned gradient element to this."""
    train_samples: int = _option(1, "--train-samples")
    """Posterior samples an optimisation step."""
    seed: int = _option(2021, "--seed")
    """Seed of initialisation, data order, dropout and noise."""
    precision: str = _option("fp32", "--precision")
    """fp32, tf32, or bf16 for the frozen weights and the computation."""
    schedule_steps: int | None = _option(None, "(schedule_steps)")
    """Total steps that the step numbers belong to; they scale to the run's own."""
    eval_every: int | None = _option(None, "--eval-every")
    """Steps between evaluations from the second epoch on, besides the epochs' ends."""
    eval_batch_size: int = _option(64, "--eval-batch-size", affects_result=False)
    """Examples a forward pass of an evaluation."""
    log_every: int = _option(50, "--log-every", affects_result=False)
    """Steps between two lines of metrics.jsonl."""
    log_to: tuple[str, ...] | None = _option(None, "--log-to", affects_result=False)
    """Trackers that are told what goes into metrics.jsonl."""
    device: str = _option("auto", "--device", affects_result=False)
    """cpu, cuda, cuda:N, or auto."""
    deterministic: bool = _option(False, "--deterministic", affects_result=False)
    """Same bits at every repetition on a GPU too, with slower kernels where need be."""
    eager: bool = _option(False, "--eager", affects_result=False)
    """Kernel by kernel on a GPU: neither CUDA graphs nor a compiler."""
    compile: str = _option("auto", "--compile", affects_result=False)
    """On a GPU, torch.compile the backbone's blocks: auto (long runs, many alike), on or off."""
    gradient_checkpointing: bool = _option(False, "--gradient-checkpointing", affects_result=False)
    """Recompute activations in the backward pass to save memory."""
    checkpoint_every: str = _option("auto", "--checkpoint-every", affects_result=False)
    """Steps or time between checkpoints, as `parse_interval` reads it."""
    output: str = _option("runs", "--output", affects_result=False)
    """Directory under which run directories are made."""
    trust_remote_code: bool = _option(False, "--trust-remote-code", affects_result=False)
    """Run Python code that comes with the model."""
    overwrite: bool = _option(False, "--overwrite", affects_result=False)
    """Replace what an earlier run left in the run directory."""

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ConfigError(problems)


FIELDS = {f.name: f for f in fields(RunConfig)}


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return str(FIELDS[name].metadata["flag"])


# what a run's kernels and their inputs do not depend on, but for the draws that the seed decides
ASIDE = ("seed", "output", "overwrite", "log_every", "log_to", "checkpoint_every")


def kind(config: RunConfig) -> tuple[Any, ...]:
    """What runs have in common that one process can train with the same network and buffers."""
    return tuple(value for name, value in asdict(config).items() if name not in ASIDE)


# ---- validation


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant, to end a message with; empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _problems(c: RunConfig) -> list[str]:
    """Every problem of a configuration: the flag, the value received and the fix."""
    found: list[str] = []

    def expect(holds: bool, name: str, fix: str) -> None:
        if not holds:
            found.append(f"{flag(name)} {getattr(c, name)}: {fix}")

    def one_of(name: str, allowed: tuple[str, ...]) -> bool:
        value = getattr(c, name)
        if value in allowed:
            return True
        hint = nearest(str(value), allowed)
        found.append(f"{flag(name)} {value}: choose one of {', '.join(allowed)}{hint}")
        return False

    one_of("task", TASK_NAMES)
    one_of("precision", PRECISIONS)
    one_of("compile", COMPILE)
    one_of("lr_schedule", LR_SCHEDULES)
    found.extend(
        f"{flag('log_to')} {name}: choose of {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
        for name in c.log_to or ()
        if name not in TRACKERS
    )
    one_of("blora_mode", BLORA_MODES)
    one_of("reg", REGULARISERS)
    methods_known = one_of("method", tuple(METHODS)) & one_of("optimizer", tuple(OPTIMIZERS))
    if methods_known:
        allowed = criteria_of(c.method, c.optimizer)
        if not allowed:
            expect(c.criterion is None, "criterion", f"--method {c.method} has none")
        elif c.criterion in CRITERIA and c.criterion not in allowed:
            expect(False, "criterion", "needs a posterior: use --optimizer ivon, or one of "
                   + ", ".join(allowed))  # fmt: skip
        else:
            one_of("criterion", allowed)

    expect(
        (c.task == "custom") == (c.train_file is not None),
        "train_file",
        "--task custom takes its examples from --train-file, other tasks have their own",
    )
    try:
        parse_interval(c.checkpoint_every)
    except ValueError as error:
        expect(False, "checkpoint_every", str(error))
    try:
        parse_ladder(c.bit_ladder)
    except ValueError as error:
        expect(False, "bit_ladder", str(error))
    expect(c.train_file is not None or c.eval_file is None, "eval_file", "needs --train-file")
    expect(c.dropout is None or 0 <= c.dropout < 1, "dropout", "must be at least 0 and below 1")
    for name in (
        "target_rank", "init_rank", "delta_t", "t_final", "batch_size", "grad_accum",
        "train_samples", "max_length", "eval_batch_size", "log_every",
    ):  # fmt: skip
        expect(getattr(c, name) >= 1, name, "must be at least 1")
    for name in (
        "t_init", "warmup_steps", "boost_until_step", "orth_reg", "weight_decay", "seed",
        "lambda_quant", "lambda_rank",
    ):  # fmt: skip
        expect(0 <= getattr(c, name) < math.inf, name, "must be finite and not negative")
    for name in ("lambda_quant", "lambda_rank"):  # AdamW's squares of it must be finite in fp32
        expect(not LARGEST_PENALTY < getattr(c, name) < math.inf, name, "1e9 at the most")
    for name in ("alpha", "lr", "epochs", "hess_init", "ess_per_example", "gate_lr", "range_lr"):
        expect(0 < getattr(c, name) < math.inf, name, "must be positive and finite")
    for name in ("max_steps", "ess", "eval_every", "boost_lr"):
        value = getattr(c, name)
        expect(value is None or 0 < value < math.inf, name, "must be positive and finite")
    expect(c.clip_radius > 0, "clip_radius", "must be positive")  # infinite: no clipping
    expect(c.seed < 2**63, "seed", "must be below 2^63")
    for name in ("ivon_beta1", "ivon_beta2"):
        expect(0 <= getattr(c, name) < 1, name, "must be at least 0 and below 1")
    expect(c.target_rank <= c.init_rank, "target_rank",
           f"must not exceed the initial rank ({c.init_rank}): raise --init-rank")  # fmt: skip
    expect(c.method != "lora" or c.init_rank == c.target_rank, "init_rank",
           f"--method lora keeps one rank, --target-rank ({c.target_rank})")  # fmt: skip
    expect(c.grad_accum < 1 or c.batch_size % c.grad_accum == 0, "grad_accum",
           f"must divide --batch-size ({c.batch_size})")  # fmt: skip
    expect(c.train_samples == 1 or c.optimizer == "ivon", "train_samples",
           "only --optimizer ivon samples weights")  # fmt: skip
    expect(c.lr_schedule != "boost" or c.boost_lr is not None, "lr_schedule",
           "needs --boost-lr and --boost-until-step")  # fmt: skip
    return found


def check_schedule(config: RunConfig, total: int) -> None:
    """Check the step numbers against the run's total number of steps.

    Raises:
        ConfigError: a warm-up, plateau or pruning phase that does not fit into `total` steps.
    """
    found = []
    if config.warmup_steps >= total:
        found.append(f"--warmup-steps {config.warmup_steps}: the run has only {total} steps")
    if config.lr_schedule == "boost" and config.boost_until_step >= total:
        found.append(f"--boost-until-step {config.boost_until_step}: the run has {total} steps")
    if config.method in ("adalora", "blora") and config.t_init + config.t_final > total:
        found.append(
            f"--t-init {config.t_init} --t-final {config.t_final}: together more than the run's "
            f"{total} steps; lower them or train longer"
        )
    if found:
        raise ConfigError(found)
