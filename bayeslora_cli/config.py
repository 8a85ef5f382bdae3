"""Configuration: preset + command line -> `RunConfig`, validated as a whole."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import ConfigError, UserError

GLUE_TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
# criterion by method and optimizer, the default first; none: the method allocates nothing
COMBINATIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("adalora", "ivon"): ("snr", "sensitivity", "snr-abs", "magnitude", "precision"),
    ("adalora", "adamw"): ("sensitivity", "magnitude"),
    ("lora", "adamw"): (),
    ("lora", "ivon"): (),
    ("full", "adamw"): (),
    ("full", "ivon"): (),
}
DEFAULT_OPTIMIZER = {"adalora": "ivon", "lora": "adamw", "full": "adamw"}
METHODS = tuple(DEFAULT_OPTIMIZER)
OPTIMIZERS = ("ivon", "adamw")
CRITERION_NAMES = COMBINATIONS["adalora", "ivon"]
PRECISIONS = ("fp32", "tf32", "bf16")
LR_SCHEDULES = ("linear", "boost")
# step numbers that a preset states for its own total and that scale with another
SCHEDULED = ("warmup_steps", "boost_until_step", "t_init", "t_final", "delta_t", "eval_every")


def _option(default: Any, flag: str, *, affects_result: bool = True) -> Any:
    return field(default=default, metadata={"flag": flag, "affects_result": affects_result})


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run. Each field is an option of `bayeslora train`."""

    task: str = _option("rte", "--task")
    """Name of the task."""
    data: str | None = _option(None, "--data")
    """Directory of the task's data; None: the hub."""
    model: str = _option("microsoft/deberta-v3-base", "--model")
    """Hub name or directory of the backbone."""
    method: str = _option("adalora", "--method")
    """adalora, lora or full."""
    optimizer: str = _option("ivon", "--optimizer")
    """ivon or adamw."""
    criterion: str | None = _option("snr", "--criterion")
    """Importance criterion of the allocation; None where the method allocates nothing."""
    target_rank: int = _option(2, "--target-rank")
    """Mean rank of a matrix at the end; the fixed rank of lora."""
    init_rank: int = _option(3, "--init-rank")
    """Rank of every matrix at the start."""
    target_modules: tuple[str, ...] | None = _option(None, "--target-modules")
    """Name endings of the adapted layers, or all-linear; None: the backbone's own."""
    alpha: float = _option(32.0, "--alpha")
    """Adapter output is scaled by alpha / initial rank."""
    orth_reg: float = _option(0.1, "--orth-reg")
    """Weight of AdaLoRA's orthogonality penalty."""
    t_init: int = _option(0, "--t-init")
    """Steps before the first pruning."""
    t_final: int = _option(1, "--t-final")
    """Steps at the end with the ranks fixed."""
    delta_t: int = _option(1, "--delta-t")
    """Steps between two allocations."""
    epochs: float = _option(3.0, "--epochs")
    """Passes over the training data."""
    max_steps: int | None = _option(None, "--max-steps")
    """Optimisation steps; overrides epochs."""
    batch_size: int = _option(32, "--batch-size")
    """Examples an optimisation step, over all micro-batches."""
    grad_accum: int = _option(1, "--grad-accum")
    """Micro-batches that a batch is split into."""
    max_length: int = _option(128, "--max-length")
    """Tokens an example at the most."""
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
    """IVON's effective sample size; None: the number of training examples."""
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
    schedule_steps: int | None = _option(None, "(preset)")
    """Total steps that the step numbers belong to; they scale to the run's own."""
    eval_every: int | None = _option(None, "--eval-every")
    """Steps between evaluations from the second epoch on, besides the epochs' ends."""
    eval_batch_size: int = _option(64, "--eval-batch-size", affects_result=False)
    """Examples a forward pass of an evaluation."""
    log_every: int = _option(50, "--log-every", affects_result=False)
    """Steps between two lines of metrics.jsonl."""
    device: str = _option("auto", "--device", affects_result=False)
    """cpu, cuda, cuda:N, or auto."""
    gradient_checkpointing: bool = _option(False, "--gradient-checkpointing", affects_result=False)
    """Recompute activations in the backward pass to save memory."""
    output: str = _option("runs", "--output", affects_result=False)
    """Directory under which run directories are made."""
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


def affecting(config: RunConfig) -> dict[str, Any]:
    """The values that decide the result, by field name."""
    values = asdict(config)
    return {n: values[n] for n, f in FIELDS.items() if f.metadata["affects_result"]}


# ---- validation


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
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        found.append(f"{flag(name)} {value}: choose one of {', '.join(allowed)}{hint}")
        return False

    one_of("task", GLUE_TASKS)
    one_of("precision", PRECISIONS)
    one_of("lr_schedule", LR_SCHEDULES)
    methods_known = one_of("method", METHODS) & one_of("optimizer", OPTIMIZERS)
    if methods_known:
        allowed = COMBINATIONS[c.method, c.optimizer]
        if not allowed:
            expect(c.criterion is None, "criterion", f"--method {c.method} allocates no ranks")
        elif c.criterion in CRITERION_NAMES and c.criterion not in allowed:
            expect(False, "criterion", "needs a posterior: use --optimizer ivon, or one of "
                   + ", ".join(allowed))  # fmt: skip
        else:
            one_of("criterion", allowed)

    for name in (
        "target_rank", "init_rank", "delta_t", "t_final", "batch_size", "grad_accum",
        "train_samples", "max_length", "eval_batch_size", "log_every",
    ):  # fmt: skip
        expect(getattr(c, name) >= 1, name, "must be at least 1")
    for name in ("t_init", "warmup_steps", "boost_until_step", "orth_reg", "weight_decay", "seed"):
        expect(getattr(c, name) >= 0, name, "must not be negative")
    for name in ("alpha", "lr", "epochs", "hess_init", "clip_radius"):
        expect(getattr(c, name) > 0, name, "must be positive")
    for name in ("max_steps", "ess", "eval_every", "boost_lr"):
        value = getattr(c, name)
        expect(value is None or value > 0, name, "must be positive")
    for name in ("ivon_beta1", "ivon_beta2"):
        expect(0 <= getattr(c, name) < 1, name, "must be at least 0 and below 1")
    expect(c.target_rank <= c.init_rank, "target_rank",
           f"must not exceed the initial rank ({c.init_rank}): raise --init-rank")  # fmt: skip
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
    if config.method == "adalora" and config.t_init + config.t_final > total:
        found.append(
            f"--t-init {config.t_init} --t-final {config.t_final}: together more than the run's "
            f"{total} steps; lower them or train longer"
        )
    if found:
        raise ConfigError(found)


# ---- resolution


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: RunConfig
    sources: Mapping[str, str]
    """Field name -> default, preset or command line."""
    changed: Mapping[str, Any]
    """Typed values that affect the result and differ from the preset's."""


def presets_directory() -> Path:
    """`presets/`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def preset_layers(path: Path, method: str, optimizer: str, criterion: str | None) -> dict[str, Any]:
    """A preset's values for one method row.

    The file's top level holds what all rows share; tables [method], [method-optimizer] and
    [method-optimizer-criterion] follow one another, the more special winning.

    Raises:
        ConfigError: a key that is no option.
    """
    with path.open("rb") as file:
        table = tomllib.load(file)
    values: dict[str, Any] = {k: v for k, v in table.items() if not isinstance(v, dict)}
    for section in (method, f"{method}-{optimizer}", f"{method}-{optimizer}-{criterion}"):
        values.update(table.get(section, {}))
    unknown = [f"preset {path.name}: {key} is no option" for key in values if key not in FIELDS]
    if unknown:
        raise ConfigError(unknown)
    return values


def resolve(typed: Mapping[str, Any]) -> Resolved:
    """Defaults, then the task's preset, then what was typed.

    Args:
        typed: field name -> value, only what the user gave.
    Raises:
        ConfigError: all problems of the outcome together.
    """
    typed = dict(typed)
    method = typed.get("method", "adalora")
    optimizer = typed.get("optimizer", DEFAULT_OPTIMIZER.get(method, "ivon"))
    allowed = COMBINATIONS.get((method, optimizer), ())
    criterion = typed.get("criterion", allowed[0] if allowed else None)
    base: dict[str, Any] = {"method": method, "optimizer": optimizer, "criterion": criterion}

    preset: dict[str, Any] = {}
    path = presets_directory() / f"{typed.get('task', 'rte')}.toml"
    if typed.get("task") in GLUE_TASKS and path.is_file():
        preset = preset_layers(path, method, optimizer, criterion)
    target_rank = typed.get("target_rank", preset.get("target_rank", 2))
    # 3 for 2 and 6 for 4, as in all of the paper's runs; a fixed rank starts where it ends
    base["init_rank"] = -(-3 * target_rank // 2) if method == "adalora" else target_rank

    for key in ("data", "model", "output"):
        if typed.get(key) is not None and Path(typed[key]).expanduser().is_dir():
            typed[key] = str(Path(typed[key]).expanduser().resolve())
    merged = base | preset | typed
    for key in ("alpha", "epochs", "lr", "boost_lr", "ess", "weight_decay", "orth_reg"):
        if isinstance(merged.get(key), int):
            merged[key] = float(merged[key])
    config = RunConfig(**merged)
    sources = {
        name: "command line" if name in typed else "preset" if name in preset else "default"
        for name in FIELDS
    }
    without = {name: f.default for name, f in FIELDS.items()} | base | preset
    changed = {
        name: getattr(config, name)
        for name in typed
        if FIELDS[name].metadata["affects_result"] and getattr(config, name) != without[name]
    }
    return Resolved(config=config, sources=sources, changed=changed)


def scale_schedule(resolved: Resolved, total: int) -> tuple[RunConfig, str | None]:
    """Fit a preset's step numbers to a run of `total` steps; typed numbers stay as they are.

    Returns:
        The configuration with its final numbers, and one notice if any of them changed.
    Raises:
        ConfigError: numbers that do not fit.
    """
    config = resolved.config
    planned = config.schedule_steps or total
    values: dict[str, Any] = {}
    for name in SCHEDULED:
        value = getattr(config, name)
        if value is None or resolved.sources[name] == "command line" or planned == total:
            continue
        scaled = value * total // planned
        at_least_one = name in ("t_final", "delta_t", "eval_every")
        values[name] = max(1, scaled) if at_least_one else scaled
    changed = {n: v for n, v in values.items() if v != getattr(config, n)}
    config = replace(config, schedule_steps=total, **values)
    check_schedule(config, total)
    if not changed:
        return config, None
    listed = ", ".join(f"{flag(name)} {value}" for name, value in changed.items())
    return config, f"schedule scaled from {planned} to {total} steps: {listed}"


# ---- names and files


def run_name(resolved: Resolved) -> Path:
    """Relative directory of a run: model / task-method-optimizer[-criterion]-rR[-hash] / seed-S."""
    config = resolved.config
    model = Path(config.model)
    slug = model.name
    if slug.lower() in ("model", "checkpoint", "final") and model.parent.name:
        slug = f"{model.parent.name}-{slug}"
    parts = [config.task, config.method, config.optimizer, config.criterion]
    if config.method != "full":
        parts.append(f"r{config.target_rank}")
    named = {"task", "method", "optimizer", "criterion", "target_rank", "seed"}
    if not Path(config.model).is_dir():
        named.add("model")
    others = {name: value for name, value in resolved.changed.items() if name not in named}
    if others:
        text = json.dumps(others, sort_keys=True)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    return Path(slug) / "-".join(p for p in parts if p) / f"seed-{config.seed}"


def to_toml(config: RunConfig) -> str:
    """A configuration as TOML; what is None is left out."""
    import tomli_w

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return tomli_w.dumps({k: v for k, v in values.items() if v is not None})


def from_toml(text: str, name: str) -> RunConfig:
    """Read `to_toml`'s form back.

    Raises:
        UserError: not TOML, or with keys that this version does not know; `name` says which file.
    """
    try:
        values = tomllib.loads(text)
        if "target_modules" in values:
            values["target_modules"] = tuple(values["target_modules"])
        nothing = {"criterion": None}  # None is left out of the file, but is not the default
        return RunConfig(**(nothing | values))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UserError(f"{name} is not a configuration of this version: {error}") from error
