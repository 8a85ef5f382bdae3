"""The options of `bayeslora train`: what each value does, its unit and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

WHAT, OWN, METHOD, RANKS = "What to train", "Your own data", "Method", "Ranks"
WIDTHS = "Ranks and bit widths (B-LoRA)"
LENGTH, RATES, POSTERIOR = "How long", "Learning rates", "Posterior (IVON)"
SWEEP, MACHINE, PRINTED = "Several runs", "Machine and output", "What is printed"


def _option(kind: Any, text: str, panel: str, *names: str) -> Any:
    return Annotated[
        kind | None, typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)
    ]


def _switch(text: str, panel: str, name: str) -> Any:
    return Annotated[bool, typer.Option(name, help=text, rich_help_panel=panel)]


Preset = _option(str, "Settings to start from: a name of --list-presets, or a .toml file.", WHAT)
ListPresets = _switch("Name the built-in presets and leave.", WHAT, "--list-presets")
TaskName = _option(
    str, "cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, or demo, which is built in; a comma "
    "list trains a run each.", WHAT, "--task",
)  # fmt: skip
Data = _option(
    str, "Directory of the task in GLUE's TSV layout or saved by datasets; else the hub.", WHAT
)
Model = _option(
    str,
    "Backbone: hub name, directory, or package:NAME/PATH, a directory in an installed package "
    "(default: microsoft/deberta-v3-base).",
    WHAT,
)
TrustRemoteCode = _option(
    bool, "Run Python code that comes with the model.", WHAT, "--trust-remote-code"
)

TrainFile = _option(
    str,
    "Training examples: .csv, .tsv, .jsonl, .parquet, or a hub data set, NAME:CONFIG@SPLIT.",
    OWN,
)
EvalFile = _option(
    str, "Labelled examples to evaluate on (default: the hub data set's validation split).", OWN
)
TextColumns = _option(str, "One or two columns, comma-separated (default: well-known names).", OWN)
LabelColumn = _option(
    str,
    "Column of the label: strings or integers are classes, reals are scores to predict "
    "(default: label and the like).",
    OWN,
)

MethodName = _option(
    str,
    "adalora, lora (fixed rank), blora (ranks and bit widths by gates) or full; a comma list "
    "trains a run each, here and in the next two (default: adalora).",
    METHOD,
    "--method",
)
Optimizer = _option(str, "ivon or adamw (default: ivon for adalora, else adamw).", METHOD)
Criterion = _option(
    str,
    "Importance of a triplet: snr, snr-abs, precision (ivon alone), sensitivity, magnitude "
    "(default: snr; sensitivity with adamw).",
    METHOD,
)

TargetRank = _option(
    str,
    "Mean rank of a matrix at the end; the rank of lora; 2,4 trains a run each (default: 2).",
    RANKS,
)
InitRank = _option(
    int, "Rank of each matrix at the start (default: 1.5 x target; blora: 8).", RANKS
)
TargetModules = _option(
    str,
    "Endings of layer names to adapt, comma-separated, or all-linear (default: PEFT's for the "
    "backbone).",
    RANKS,
)
Alpha = _option(float, "Scale: alpha / initial rank (default: 32).", RANKS)
OrthReg = _option(float, "Weight of the orthogonality penalty, adalora (default: 0.1).", RANKS)
TInit = _option(int, "Steps before the first pruning; blora: without quantizers.", RANKS)
TFinal = _option(int, "Steps at the end with ranks (and widths) fixed.", RANKS)
DeltaT = _option(int, "Steps between two allocations.", RANKS)

BloraMode = _option(
    str,
    "Gates over ranks and widths: both, quant or rank; a comma list trains a run each, here and "
    "in the next two (default: both).",
    WIDTHS,
)
LambdaQuant = _option(
    str, "Weight of the penalty on bit widths, a quantizer (default: 0.001).", WIDTHS
)
LambdaRank = _option(str, "Weight of the penalty on ranks, a matrix (default: 0.1).", WIDTHS)
BitLadder = _option(
    str, "Widths to choose from: 2,4,8,16 or neighbours among them (default: all).", WIDTHS
)
QuantizeBase = _option(
    bool, "Quantize the frozen weights and their inputs as well.", WIDTHS, "--quantize-base"
)
Reg = _option(
    str,
    "How widths weigh in the penalty: const, or bop, by their multiplications (default: const).",
    WIDTHS,
)
GateLr = _option(float, "Learning rate of the gates (default: 0.01).", WIDTHS)
RangeLr = _option(float, "Learning rate of the quantizers' ranges (default: 0.01).", WIDTHS)

Epochs = _option(float, "Passes over the training data.", LENGTH)
MaxSteps = _option(int, "Optimisation steps, instead of epochs.", LENGTH)
BatchSize = _option(
    int, "Examples a step, over all micro-batches and processes (default: 32).", LENGTH
)
GroupByLength = _option(
    bool,
    "Put examples of like length into a batch, so that little is padded (default: at random).",
    LENGTH,
    "--group-by-length",
)
GradAccum = _option(
    int, "Micro-batches that a batch is split into, to save memory (default: 1).", LENGTH
)
MaxLength = _option(int, "Tokens an example at the most.", LENGTH)
Dropout = _option(
    float, "Probability of all of the backbone's dropouts (default: the backbone's own).", LENGTH
)
EvalEvery = _option(
    int, "Steps between evaluations from the second epoch on, besides epochs' ends.", LENGTH
)

Lr = _option(str, "Learning rate that decays to 0; a comma list trains a run each.", RATES)
LrSchedule = _option(str, "linear, or boost: a plateau of its own height first.", RATES)
BoostLr = _option(str, "Learning rate of the plateau, or a comma list.", RATES)
BoostUntilStep = _option(int, "Step at which the plateau ends.", RATES)
WarmupSteps = _option(int, "Steps of rising learning rate at the start.", RATES)
WeightDecay = _option(
    float, "AdamW: decoupled decay (0); IVON: delta, added to the Hessian (1e-8).", RATES
)

Ess = _option(float, "Effective sample size in examples (default: as the next says).", POSTERIOR)
EssPerExample = _option(
    float, "Effective sample size over the number of training examples (default: 1).", POSTERIOR
)
TrainSamples = _option(int, "Posterior samples a step (default: 1).", POSTERIOR)
HessInit = _option(float, "h0, the initial Hessian (default: 1).", POSTERIOR)
IvonBeta1 = _option(float, "Average of the gradient (default: 0.9).", POSTERIOR)
IvonBeta2 = _option(float, "Average of the Hessian (default: 0.99999).", POSTERIOR)
ClipRadius = _option(
    float, "Bound of a preconditioned gradient element (default: 0.001).", POSTERIOR
)

Seed = _option(int, "Of initialisation, order, dropout and noise (default: 2021).", MACHINE)
Seeds = _option(str, "Several: a run each, such as 2021-2025 or 1,5,7-9.", SWEEP)
Jobs = _option(
    int,
    "Runs at a time, in as many processes, each with a log beside its directory, one a GPU where "
    "there are several (default: 1, in this process).",
    SWEEP,
)
PrintCommands = _switch(
    "Print one command a run, for a SLURM array, and leave.", SWEEP, "--print-commands"
)
Precision = _option(str, "fp32, tf32, or bf16 (adapters stay fp32) (default: fp32).", MACHINE)
Device = _option(str, "cpu, cuda, cuda:N or auto (default: auto).", MACHINE)
Eager = _option(
    bool, "Run a GPU kernel by kernel: no CUDA graphs, no compiler.", MACHINE, "--eager"
)
Compile = _option(
    str,
    "torch.compile on a GPU: on, off, or auto, for 20,000 steps, those of all runs of a sweep that "
    "share a network (default: auto).",
    MACHINE,
)
GradientCheckpointing = _option(
    bool, "Trade time for activation memory.", MACHINE, "--gradient-checkpointing"
)
EvalBatchSize = _option(int, "Examples a forward pass of an evaluation (default: 64).", MACHINE)
Deterministic = _option(
    bool,
    "Let a GPU give the same bits at every repetition, as a CPU does; slower.",
    MACHINE,
    "--deterministic",
)
CheckpointEvery = _option(
    str,
    "Steps (500) or time (30s, 10m, 2h) between checkpoints (default: auto, a minute, or 200 "
    "times as long as a checkpoint takes if that is longer).",
    MACHINE,
)
Output = _option(str, "Directory under which run directories are made (default: runs).", MACHINE)
Overwrite = _option(
    bool,
    "Replace what an earlier run left (a run begun with --overwrite is resumed by it).",
    MACHINE,
    "--overwrite",
)

DryRun = _switch("Say what would be done, and what it needs, and leave.", PRINTED, "--dry-run")
AsJson = _switch("Print the result, one JSON object, and nothing else.", PRINTED, "--json")
Quiet = _switch("Warnings alone beside the result.", PRINTED, "--quiet")
Verbose = _switch("All there is to say.", PRINTED, "--verbose")
LogEvery = _option(int, "Steps between two lines of metrics.jsonl (default: 50).", PRINTED)
LogTo = _option(
    str,
    "Trackers to tell besides metrics.jsonl, comma-separated: tensorboard, wandb, mlflow, trackio.",
    PRINTED,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]

RunPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        show_default=False,
        help="Directory of a finished run; of several, or one that holds runs, a table.",
    ),
]
TABLE = "The table of several runs"
At = _option(
    str,
    "Evaluation that counts: best_at_budget (with the final ranks), best (of all, as the paper "
    "counts) or last (default: best_at_budget).",
    TABLE,
)
Markdown = _switch("Print the table in Markdown.", TABLE, "--markdown")
Latex = _switch("Print the table in LaTeX, for booktabs.", TABLE, "--latex")
AsCsv = _switch("Print a line a row and task.", TABLE, "--csv")
ReferenceFile = _option(
    Path, "Show differences from published values: a JSON table, as --json has it.", TABLE,
    "--reference",
)  # fmt: skip
Paired = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="ROW ROW",
        help="Test whether the first row differs from the second by more than noise, over the "
        "tasks and seeds that both have; a row by its name or words of it, such as 'ivon snr'.",
        rich_help_panel=TABLE,
        show_default=False,
    ),
]
