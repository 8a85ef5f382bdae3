"""How long a run needs before its steps are fast: compiling and capturing, from an empty cache.

    python tests/benchmarks/start.py [--lengths 64,256,mnli] [--variants static,symbols]
        [--packing on] [--kernels 30]
    python tests/benchmarks/start.py --device cpu --tiny        # compiled for the CPU: does it run?

For each variant two processes run one after the other, with a cache folder of their own: the first
finds it empty, the second finds what the first left; `--states here` is one process with the
user's own cache, which earlier calls have filled. A process builds AdaLoRA + IVON + snr and runs
three steps of each length, as a run's first steps are: an allocation at the second and third. Its
table tells where the time went, by torch's own clocks; pieces that are compiled side by side
overlap, so that parts can exceed the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = {"static": False, "symbols": None}
"""What `dynamic` of `compile_blocks` is: a code per width, or one for all of them."""


def child(options: argparse.Namespace) -> None:
    """Build and run the first steps; print where the time went."""
    begun = time.perf_counter()
    import gpu_rows
    import gpu_step
    import torch
    from transformers import AutoModelForSequenceClassification, DebertaV2Config

    from bayeslora_cli.execution import compilation
    from bayeslora_cli.execution.device import set_precision
    from bayeslora_cli.training.step import TrainStep

    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    precision = "bf16" if device.type == "cuda" else "fp32"
    set_precision(precision)
    dynamic = VARIANTS[options.variants]
    gpu_rows.SIDE_BY_SIDE = not options.one_by_one
    gpu_rows.compile_blocks = lambda module, **_: compilation.compile_blocks(  # type: ignore[attr-defined]
        module, dynamic=dynamic
    )
    if options.around == "update":
        TrainStep.compile = lambda self: self.optimizer.compile()  # type: ignore[method-assign]
    elif options.around == "nothing":
        TrainStep.compile = lambda _: None  # type: ignore[method-assign]
    vocabulary = (gpu_step.TINY if options.tiny else gpu_step.ARCHITECTURE)["vocab_size"]
    architecture = gpu_step.ARCHITECTURE | (gpu_step.TINY if options.tiny else {})
    imported = time.perf_counter()
    if device.type == "cuda":
        compilation.start_compilers()  # as a run does
    with tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(
            DebertaV2Config(**architecture)
        ).save_pretrained(model)
        setting = gpu_rows.Setting(model=model, device=device, precision=precision, total=600)
        start = time.perf_counter()
        step = gpu_rows.engine(
            "adalora",
            "ivon",
            "snr",
            compiled=not options.uncompiled,
            force=device.type == "cpu",
            packing=options.packing,
        )(setting)
    built = time.perf_counter()
    if options.wait:
        compilation.await_compilers()
        print(f"waited {time.perf_counter() - built:.1f} s for processes that compile")
    print(f"imports {imported - begun:.1f} s, building {built - start:.1f} s", flush=True)
    done = 0
    for length in options.lengths.split(","):
        batch = gpu_step.make_batches(length, 1, 32, vocabulary, device)[0]
        taken = []
        for _ in range(3):
            then = time.perf_counter()
            step(done, batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - then)
            done += 1
        print(f"{length} tokens: steps {', '.join(f'{x:.2f}' for x in taken)} s", flush=True)
        if device.type == "cuda":
            then = time.perf_counter()
            for _ in range(50):
                step(done, batch)
                done += 1
            torch.cuda.synchronize()
            print(f"  then {(time.perf_counter() - then) * 20:.2f} ms per step", flush=True)
            if options.kernels:
                from decoder_block import kernels_of

                more = batch if options.packing == "on" else gpu_rows.widened(batch)
                print(kernels_of(lambda b=more, t=done: step(t, b), 1, options.kernels))  # type: ignore[misc]
                done += 1
    print(f"ready in {time.perf_counter() - built:.1f} s")
    show(options.top)


def show(top: int) -> None:
    """Print torch's clocks: by frame, then by phase."""
    from torch._dynamo import utils

    for found in utils.get_compilation_metrics():
        m: Any = found
        print(
            f"  {m.entire_frame_compile_time_s or 0:5.1f} s {m.co_name} "
            f"{Path(m.co_filename or '').name}:{m.co_firstlineno}, backend "
            f"{m.backend_compile_time_s or 0:.1f}, inductor {m.inductor_compile_time_s or 0:.1f}, "
            f"graph {m.graph_op_count} ops, {m.guard_count} guards, again because: "
            f"{str(m.recompile_reason)[:100]}"
        )
    total = {name: sum(times) for name, times in utils.compilation_time_metrics.items()}
    for name, seconds in sorted(total.items(), key=lambda pair: -pair[1])[:top]:
        count = len(utils.compilation_time_metrics[name])
        print(f"  {seconds:6.2f} s {count:4d} times {name}")
    counters = utils.counters
    for group in ("aot_autograd", "inductor", "stats", "graph_break"):
        kept = {k: v for k, v in counters[group].items() if "cache" in k or group != "inductor"}
        print(f"  {group}: {json.dumps(kept)[:300]}")


def main() -> None:
    """Run two processes for each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="64,256")
    parser.add_argument("--variants", default="static,symbols")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny backbone")
    parser.add_argument("--states", default="empty,warm", help="of the cache: empty,warm or here")
    parser.add_argument(
        "--around", choices=("all", "update", "nothing"), default="all",
        help="what is compiled besides the blocks",
    )  # fmt: skip
    parser.add_argument("--packing", default="off", choices=("off", "on"))
    parser.add_argument("--uncompiled", action="store_true", help="captured only")
    parser.add_argument("--one-by-one", action="store_true", help="kernels of ours, compiled")
    parser.add_argument("--kernels", type=int, default=0, help="kernels of a step to list")
    parser.add_argument("--top", type=int, default=14, help="phases to print")
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    for variant in options.variants.split(","):
        with tempfile.TemporaryDirectory() as cache:
            names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
            places = {name: str(Path(cache) / name) for name in names}
            if options.states == "here":
                places = {}
            for state in options.states.split(","):
                print(f"\n## {variant}, cache {state}", flush=True)
                start = time.perf_counter()
                command = [sys.executable, *sys.argv, "--child", "--variants", variant]
                # a run waits if it finds nothing; the kernels of the second are those of the first
                command += ["--wait"] if state == "empty" else ["--kernels", "0"]
                subprocess.run(command, env=os.environ | places, check=False)
                print(f"the whole process {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
