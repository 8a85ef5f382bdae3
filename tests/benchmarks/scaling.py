"""Throughput of one job on several GPUs against one, at a fixed local batch; one command.

    python tests/benchmarks/scaling.py [--processes 2] [--lengths 64,256] [--precision bf16,fp32]
    python tests/benchmarks/scaling.py --device cpu --tiny --processes 2    # does it run at all?

DeBERTaV3-base by its configuration with random weights, dropout on, every process 32 rows a step,
an allocation at every timed step, captured. torchrun starts it once with one process and once with
all. Each turn begins when all processes are ready and ends when the last has done its steps; the
median of the turns counts. The last columns are the bytes that a step sums over the processes, and
what that alone takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from against import add_option, compared
from gpu_rows import EXAMPLES, T_INIT
from gpu_step import ARCHITECTURE, TINY, comma_list, make_batches
from measure import describe, environment, synchronize
from transformers import AutoModelForSequenceClassification, DebertaV2Config
from transformers.utils.logging import disable_progress_bar

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.execution.device import set_precision
from bayeslora_cli.execution.launch_environment import joined, place
from bayeslora_cli.execution.processes import Processes
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.schedules import LearningRate, RankBudget
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.step import TrainStep

# optimizer -> criterion
ROWS = {"ivon": "snr", "adamw": "sensitivity"}


def build(
    optimizer: str, model: str, precision: str, total: int, device: torch.device,
    processes: Processes, *, compiled: bool,
) -> TrainStep:  # fmt: skip
    """A step of AdaLoRA, as `TrainingSetup` builds it."""
    config = RunConfig(
        model=model, method="adalora", optimizer=optimizer, criterion=ROWS[optimizer], init_rank=3,
        precision=precision, weight_decay=1e-8 if optimizer == "ivon" else 0.0,
        t_init=T_INIT, t_final=total // 3, schedule_steps=total,
    )  # fmt: skip
    maker = OPTIMIZERS[optimizer]
    network = build_network(
        config, build_objective("classification", ("a", "b")), SimpleNamespace(pad_token_id=0),
        posterior=maker.posterior, device=device,
    )  # fmt: skip
    matrices = len(network.bank.matrices)
    budget = RankBudget(
        initial=3 * matrices, target=2 * matrices, t_init=T_INIT, t_final=total // 3, delta_t=1,
        total=total,
    )  # fmt: skip
    noise = torch.Generator(device).manual_seed(processes.seed(0))
    captured = device.type == "cuda"
    step = TrainStep(
        network,
        build_optimizer(config, network.bank, EXAMPLES, noise),
        RankAllocator(network.bank, load_criterion(ROWS[optimizer]), budget),
        learning_rate=LearningRate(
            peak=0.4 if optimizer == "ivon" else 5e-4, total=total, warmup=1
        ),
        orth_reg=0.1,
        samples=1,
        runner=GraphRunner([noise]) if captured else run_eagerly,
        processes=processes,
    )
    network.module.train()
    if captured and compiled:
        compile_blocks(network.module)
        step.compile()
    return step


def timed(
    call: Callable[[], None], count: int, device: torch.device, processes: Processes
) -> float:
    """Milliseconds a call, of the slowest process."""
    synchronize(device)
    processes.gather(None)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return max(processes.gather(1e3 * (time.perf_counter() - start) / count))


def measure(options: argparse.Namespace, processes: Processes) -> list[dict[str, Any]]:
    """The figures of this job."""
    device = processes.assign_device(torch.device(options.device))
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream(device))
    vocabulary = (TINY if options.tiny else ARCHITECTURE)["vocab_size"]
    found = []
    for precision in options.precision:
        set_precision(precision)
        for length in options.lengths:
            for optimizer in options.optimizers:
                total = 2 * (options.warm_up + options.repeats * options.inner)
                if processes.first:
                    print(f"{precision}, {length}, {optimizer}", file=sys.stderr, flush=True)
                step = build(
                    optimizer, options.model, precision, total, device, processes,
                    compiled=options.compile,
                )  # fmt: skip
                torch.manual_seed(processes.seed(0))
                (batch,) = make_batches(length, 1, options.batch_size, vocabulary, device)
                numbers = iter(range(total))

                def call(step=step, batch=batch, numbers=numbers) -> None:
                    step(next(numbers), [batch])

                for _ in range(options.warm_up):
                    call()
                turns = [
                    timed(call, options.inner, device, processes) for _ in range(options.repeats)
                ]
                bank, good = step.network.bank, step.good
                alone = timed(lambda b=bank, g=good: processes.reduce(b, g), 20, device, processes)  # type: ignore[misc]
                assert step.bad_step() is None
                processes.check_state(total, bank)
                found.append(
                    {
                        "precision": precision, "length": length, "optimizer": optimizer,
                        "ms": statistics.median(turns), "fastest": min(turns),
                        "slowest": max(turns), "reduce_ms": alone,
                        "bytes": bank.message.nbytes,
                        "failure": getattr(step.runner, "failure", None),
                    }
                )  # fmt: skip
                del step, bank
    return found


def job(processes: int, options: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Start a job, and read what its first process has found."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "found.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), __file__, *sys.argv[1:],
            "--model", model, "--found", str(file),
        ]  # fmt: skip
        print(f"{processes} process{'es' if processes > 1 else ''} …", file=sys.stderr)
        subprocess.run(command, check=True)
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found


def table(one: list[dict[str, Any]], all_: list[dict[str, Any]], count: int, rows: int) -> str:
    """Both jobs side by side, in Markdown."""
    lines = [
        f"| tokens, precision, optimizer | ms a step, 1 | ms a step, {count} | rows a second, 1 "
        f"| rows a second, {count} | times as many | MB summed | sum alone, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for a, b in zip(one, all_, strict=True):
        throughputs = rows * 1e3 / a["ms"], rows * count * 1e3 / b["ms"]
        cells = [
            f"{a['length']}, {a['precision']}, {a['optimizer']}",
            *(f"{r['ms']:.2f} ({r['fastest']:.2f} – {r['slowest']:.2f})" for r in (a, b)),
            *(f"{value:,.0f}" for value in throughputs),
            f"**{throughputs[1] / throughputs[0]:.2f}**",
            f"{b['bytes'] / 1e6:.1f}",
            f"{b['reduce_ms']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    failures = {found["failure"] for found in (*one, *all_)} - {None}
    return "\n".join([*lines, *(f"\nnot captured: {why}" for why in failures)])


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--lengths", type=comma_list(None), default=["64", "256"])
    parser.add_argument("--precision", type=comma_list(("fp32", "bf16")), default=["bf16", "fp32"])
    parser.add_argument("--optimizers", type=comma_list(tuple(ROWS)), default=list(ROWS))
    parser.add_argument("--batch-size", type=int, default=32, help="rows of each process")
    parser.add_argument("--repeats", type=int, default=9, help="timed turns")
    parser.add_argument("--inner", type=int, default=20, help="steps a turn")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before")
    parser.add_argument("--compile", action="store_true", help="under torch.compile as well")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny backbone")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    add_option(parser)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def worker(options: argparse.Namespace) -> None:
    """One process of a job."""
    at = place()
    with joined(at, Stop()) as processes:
        found = measure(options, processes)
        if processes.first:
            options.found.write_text(json.dumps(found))
    at.exit(0)


def main() -> None:
    """Run both jobs, print the table."""
    options = parse_options()
    if compared(__file__, options):
        return
    warnings.simplefilter("ignore")
    disable_progress_bar()
    if options.model is not None:
        worker(options)
    architecture = ARCHITECTURE | (TINY if options.tiny else {})
    with tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(
            DebertaV2Config(**architecture)
        ).save_pretrained(model)
        one, all_ = (job(count, options, model) for count in (1, options.processes))
    found = environment(torch.device(options.device))
    print(f"{describe(found)}\n`{' '.join(['python', *sys.argv])}`\n")
    name = "a tiny DeBERTa" if options.tiny else "DeBERTaV3-base architecture"
    print(
        f"{name}, AdaLoRA, {options.batch_size} rows a process, dropout on, an allocation a step, "
        f"medians of {options.repeats} turns of {options.inner} steps\n\n"
        + table(one, all_, options.processes, options.batch_size)
    )
    if options.json is not None:
        written = {"environment": found, "command": sys.argv, "1": one, "all": all_}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
