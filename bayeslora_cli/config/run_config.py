"""`RunConfig`: everything that decides a run. Options are declared only here."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bayeslora_cli.config import catalogue, catalogue_text, values

from bayeslora_cli.config.options import (  # isort: skip
    LENGTH, MACHINE, METHOD, POSTERIOR, PRINTED, RANKS, RATES, WHAT, WIDTHS,
    Condition, beside, beside_any, declared, option, settle, unless,
)  # fmt: skip
from bayeslora_cli.config.entries.metrics import metric_name
from bayeslora_cli.config.task_options import TaskOptions
from bayeslora_cli.config.validation import problems
from bayeslora_cli.errors import ConfigError

_ALONE = Condition("start_from", lambda source: source is None, "no --from")
_RANKS_ONLY = beside("blora_mode", "rank")
_ONE_WIDTH = Condition("bit_ladder", lambda text: "," not in text, "one width in --bit-ladder")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(TaskOptions):
    """Everything that decides a run. Each field is an option of `bayeslora train`.

    The help of an option tells what it does; None stands for the default that the help names.
    """

    # fmt: off
    # ---- by which method
    method: str = option(
        "adalora", METHOD,
        "{choices}; a comma list trains one run per name, here and in the next two",
        choices=catalogue.METHODS, sweep=values.parse_names, part_of_name="row", deep=False,
    )
    optimizer: str = option(
        "ivon", METHOD, "{choices}", default_text=catalogue_text.usual_optimizers,
        choices=catalogue.OPTIMIZERS, sweep=values.parse_names, part_of_name="row", deep=False,
    )
    criterion: str | None = option(
        "snr", METHOD, lambda: f"Importance of a triplet: {catalogue_text.described_criteria()}",
        default_text=catalogue_text.usual_criteria, choices=catalogue.CRITERIA, narrowed=True,
        sweep=values.parse_names, part_of_name="row", deep=False,
    )
    target_rank: int = option(
        2, RANKS, "Mean rank of a matrix at the end; lora's rank; 2,4 trains one run per rank",
        checks=(values.at_least_one,), sweep=values.parse_numbers, varies=-1, part_of_name="rank",
        deep=False,
    )
    start_from: str | None = option(
        None, METHOD,
        "Begin with what was learned before: a run, a LoRA or AdaLoRA adapter of PEFT's, or a "
        "merged model", default_text="", path=True, typed_as="--from",
    )
    from_ranks: str = option(
        "anew", RANKS,
        "Ranks after --from: allocated anew, beginning with --init-rank, or kept as they are",
        choices=catalogue.FROM_RANKS, idle_when=(_ALONE,),
    )
    prior: str = option(
        "zero", POSTERIOR,
        "Prior: zero, N(0, 1 / (ess delta)); or from: the posterior of the run of --from",
        choices=catalogue.PRIORS, idle_when=(_ALONE,),
    )
    init_rank: int = option(
        3, RANKS, "Rank of each matrix at the start", default_text=catalogue_text.usual_ranks,
        checks=(values.at_least_one,),
    )
    target_modules: tuple[str, ...] | None = option(
        None, RANKS, "Layers to adapt: endings of their names, comma-separated, or all-linear",
        default_text="PEFT's choice; all in the blocks of language models", decides_code=True,
    )
    alpha: float = option(
        32.0, RANKS, "Scale: alpha / initial rank", checks=(values.positive_and_finite,)
    )
    orth_reg: float = option(
        0.1, RANKS, "Weight of the orthogonality penalty, adalora", checks=(values.not_negative,)
    )
    t_init: int = option(
        0, RANKS, "Steps before the first pruning; blora: without quantizers",
        checks=(values.not_negative,), scales=0,
    )
    t_final: int = option(
        1, RANKS, "Steps at the end with ranks (and widths) fixed", checks=(values.at_least_one,),
        scales=1,
    )
    delta_t: int = option(
        1, RANKS, "Steps between two allocations", checks=(values.at_least_one,), scales=1,
    )
    blora_mode: str = option(
        "both", WIDTHS,
        "Gates over ranks and widths: {choices}; a comma list trains a run each, here and in the "
        "next two", choices=catalogue.BLORA_MODES, sweep=values.parse_names, always_told=True,
    )
    lambda_quant: float = option(
        1e-3, WIDTHS, "Weight of the penalty on bit widths, per quantizer",
        checks=(values.not_negative, values.penalty), idle_when=(_RANKS_ONLY, _ONE_WIDTH),
        sweep=values.parse_reals, varies=2, always_told=True,
    )
    lambda_rank: float = option(
        0.1, WIDTHS, "Weight of the penalty on ranks, per matrix",
        checks=(values.not_negative, values.penalty), idle_when=(beside("blora_mode", "quant"),),
        sweep=values.parse_reals, varies=2, always_told=True,
    )
    bit_ladder: str = option(
        "2,4,8,16", WIDTHS, "Bit widths to choose from: 2,4,8,16 or neighbours among them",
        default_text="all", checks=(values.parse_ladder,), idle_when=(_RANKS_ONLY,),
    )
    quantize_base: bool = option(
        False, WIDTHS, "Quantize the frozen weights and their inputs too", idle_when=(_RANKS_ONLY,)
    )
    reg: str = option(
        "const", WIDTHS,
        "Weight of a width in the penalty: const, or bop, by its multiplications",
        choices=catalogue.REGULARISERS, idle_when=(_RANKS_ONLY, _ONE_WIDTH),
    )
    gate_lr: float = option(
        1e-2, WIDTHS, "Learning rate of the gates", checks=(values.positive_and_finite,)
    )
    range_lr: float = option(
        1e-2, WIDTHS, "Learning rate of the quantizers' ranges",
        checks=(values.positive_and_finite,), idle_when=(_RANKS_ONLY,),
    )

    # ---- how long, and how fast
    epochs: float = option(
        3.0, LENGTH, "Passes over the training data",
        checks=(values.positive_and_finite,), deep=False, idle_when=(beside_any("max_steps"),),
    )
    max_steps: int | None = option(
        None, LENGTH, "Optimisation steps, instead of epochs", checks=(values.positive_and_finite,)
    )
    batch_size: int = option(
        32, LENGTH, "Examples per step, over all micro-batches and processes",
        checks=(values.at_least_one,), deep=False,
    )
    group_by_length: bool = option(
        False, LENGTH, "Put examples of similar length into a batch: less padding, if rows have it",
        default_text="at random",
    )
    grad_accum: int = option(
        1, LENGTH, "Micro-batches that a batch is split into, to save memory",
        checks=(values.at_least_one,),
    )
    max_length: int = option(
        128, LENGTH, "Largest number of tokens per example", checks=(values.at_least_one,),
        fitted=True,
    )
    dropout: float | None = option(
        None, LENGTH, "Probability of all of the backbone's dropouts",
        default_text="the backbone's own", checks=(values.below_one,), decides_code=True,
    )
    lr: float = option(
        1e-3, RATES, "Learning rate, from which it decays; a comma list trains one run per rate",
        checks=(values.positive_and_finite,), sweep=values.parse_reals, varies=1, deep=False,
    )
    lr_schedule: str = option(
        "linear", RATES,
        "Decay to 0: linear, cosine; constant: none; boost: linear, after a plateau of its own "
        "height; a comma list trains a run each",
        choices=catalogue.LR_SCHEDULES, sweep=values.parse_names, varies=1,
    )
    boost_lr: float | None = option(
        None, RATES, "Learning rate of the plateau, or a comma list",
        checks=(values.positive_and_finite,), idle_when=(unless("lr_schedule", "boost"),),
        sweep=values.parse_reals, varies=1,
    )
    boost_until_step: int = option(
        0, RATES, "Step at which the plateau ends",
        checks=(values.not_negative,), idle_when=(unless("lr_schedule", "boost"),), scales=0,
    )
    warmup_steps: int = option(
        0, RATES, "Steps of rising learning rate at the start", checks=(values.not_negative,),
        idle_when=(beside_any("warmup_ratio"),), scales=0,
    )
    warmup_ratio: float | None = option(
        None, RATES, "Share of the run's steps that --warmup-steps are, or a comma list",
        checks=(values.below_one,), sweep=values.parse_reals, varies=1,
    )
    weight_decay: float = option(
        0.0, RATES, "AdamW: decoupled decay; IVON: delta, added to the Hessian",
        checks=(values.not_negative,),
    )
    weight_decay_of: str = option(
        "all", RATES, "What AdamW's decay acts on: all, or matrices: neither biases nor norms",
        choices=catalogue.DECAYED,
    )
    max_grad_norm: float | None = option(
        None, RATES,
        "Largest norm of AdamW's gradient, all weights together, or a comma list",
        default_text="not bounded", checks=(values.positive_and_finite,),
        sweep=values.parse_reals, varies=1,
    )
    ess: float | None = option(
        None, POSTERIOR, "Effective sample size in examples",
        default_text="--ess-per-example x training examples", checks=(values.positive_and_finite,),
    )
    ess_per_example: float = option(
        1.0, POSTERIOR, "Effective sample size over the number of training examples",
        checks=(values.positive_and_finite,), idle_when=(beside_any("ess"),),
    )
    hess_init: float = option(
        1.0, POSTERIOR, "h0, the initial Hessian", checks=(values.positive_and_finite,)
    )
    ivon_beta1: float = option(
        0.9, POSTERIOR, "Decay rate of the gradient's moving average", checks=(values.below_one,)
    )
    ivon_beta2: float = option(
        0.99999, POSTERIOR, "Decay rate of the Hessian's moving average", checks=(values.below_one,)
    )
    clip_radius: float = option(  # infinity: no clipping
        1e-3, POSTERIOR, "Largest absolute value of a preconditioned gradient element",
        checks=(values.positive,),
    )
    train_samples: int = option(
        1, POSTERIOR, "Posterior samples per step", checks=(values.at_least_one,)
    )

    # ---- on what, and where to
    seed: int = option(
        2021, MACHINE, "Seed of initialisation, order, dropout and noise",
        checks=(values.not_negative, values.below_two_to_63), shares_network=True,
        sweep=values.parse_numbers, sweep_flag="--seeds", varies=3, part_of_name="run", deep=False,
    )
    precision: str = option(
        "fp32", MACHINE, "fp32, tf32, or bf16 (adapters stay fp32)",
        choices=catalogue.PRECISIONS, decides_code=True, deep=False,
    )
    base_precision: str | None = option(
        None, MACHINE, "Precision of the frozen weights: {choices}; a comma list trains a run each",
        default_text="that of --precision", choices=catalogue.BASE_PRECISIONS,
        sweep=values.parse_names, decides_code=True, always_told=True,
    )
    schedule_steps: int | None = option(
        None, LENGTH, "Total steps that the step numbers belong to; they scale to the run's own",
        typed=False, fitted=True,
    )
    eval_every: int | None = option(
        None, LENGTH, "Steps between evaluations from the second epoch on, besides epochs' ends",
        # an evaluation costs what it costs: short runs are not to spend most of their time on them
        checks=(values.positive_and_finite,), scales=50,
    )
    select: str | None = option(
        None, LENGTH,
        "Metric of the best evaluation, which is kept: accuracy, macro-f1, mcc, auroc, nll, rmse …",
        default_text="the task's own", choices=catalogue.METRICS, spelled=metric_name,
    )
    patience: int | None = option(
        None, LENGTH,
        "End the run after this many evaluations at the final ranks without a better one",
        checks=(values.at_least_one,),
    )
    eval_batch_size: int = option(
        64, MACHINE, "Examples per forward pass of an evaluation", checks=(values.at_least_one,),
        affects_result=False,
    )
    log_every: int = option(
        50, PRINTED, "Steps between two lines of metrics.jsonl",
        checks=(values.at_least_one,), affects_result=False, shares_network=True,
    )
    log_to: tuple[str, ...] | None = option(
        None, PRINTED, "Trackers to log to besides metrics.jsonl, comma-separated: {choices}",
        choices=catalogue.TRACKERS, affects_result=False, shares_network=True, deep=False,
    )
    device: str = option(
        "auto", MACHINE, "cpu, cuda, cuda:N or auto", affects_result=False, deep=False
    )
    deterministic: bool = option(
        False, MACHINE, "Make a GPU give the same bits at every repetition, as a CPU does; slower",
        affects_result=False,
    )
    eager: bool = option(
        False, MACHINE, "Run a GPU kernel by kernel: no CUDA graphs, no compiler",
        affects_result=False,
    )
    compile: str = option(
        "auto", MACHINE,
        "torch.compile on a GPU: on, off, or auto, for 20,000 steps, of packed rows 1,500 "
        "(encoders 150,000), those of all runs of a sweep that share a network",
        choices=catalogue.SWITCH, affects_result=False, idle_when=(beside("eager", True),),
    )
    packing: str = option(
        "auto", MACHINE,
        "Batches without padding, row after row: on, off, or auto: where it is faster",
        choices=catalogue.SWITCH, affects_result=False, decides_code=True,
    )
    gradient_checkpointing: str = option(
        "off", MACHINE, "Recompute activations, to save memory: {choices}; the flag alone: blocks",
        choices=(*catalogue.RECOMPUTED,), bare="blocks", affects_result=False, decides_code=True,
    )
    shard: bool = option(
        False, MACHINE, "Divide blocks' frozen weights among processes", affects_result=False,
    )
    checkpoint_every: str = option(
        "auto", MACHINE, "Steps (500) or time (30s, 10m, 2h) between checkpoints",
        default_text="auto: a minute, or 200 times as long as a checkpoint takes if that is longer",
        checks=(values.parse_interval,), affects_result=False, shares_network=True,
    )
    output: str = option(
        "runs", MACHINE, "Directory under which run directories are made",
        path=True, affects_result=False, shares_network=True, deep=False,
    )
    trust_remote_code: bool = option(
        False, WHAT, "Run Python code that comes with the model",
        typed_only=True, affects_result=False,
    )
    overwrite: bool = option(
        False, MACHINE,
        "Replace what an earlier run left (a run begun with --overwrite is resumed by it)",
        affects_result=False, shares_network=True,
    )
    # fmt: on

    def __post_init__(self) -> None:
        settle(OPTIONS, self)
        if found := problems(OPTIONS, asdict(self)):
            raise ConfigError(found)

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the run; only a configuration from `scale_schedule` knows them."""
        assert self.schedule_steps is not None
        return self.schedule_steps


OPTIONS = declared(RunConfig)
SCHEDULED = tuple(name for name, o in OPTIONS.items() if o.scales is not None)
"""Step numbers that a preset gives for its own total and that scale to another total."""
METHOD_ROW = tuple(name for name, o in OPTIONS.items() if o.part_of_name == "row")
"""The options that choose a method row."""


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return OPTIONS[name].flag
