"""A training step of a causal language model: this engine and its peers, side by side in one run.

    python tests/benchmarks/causal_step.py --size smollm2          # then llama, qwen; on one H200
    python tests/benchmarks/causal_step.py --size llama --lengths sft --rows adalora-ivon
    python tests/benchmarks/causal_step.py --device cpu            # SmolLM2's shape, 4 x 256
    python tests/benchmarks/causal_step.py --device cpu --size tiny --repeats 2    # does it run?

All rows get the same random weights by configuration, adapters on all seven projections (LoRA of
rank 8, AdaLoRA from 12 to 8, B-LoRA of 12 in its learning phase) and the same tokens; nothing is
dropped out, all tokens count. Without peers among the rows the weights are drawn on the device,
one layer after the other, so that models that do not fit there in bf16 can be measured in few bits.
Adaptive rows allocate at every timed step, the dearest case. A step
is everything: the batch from rows on the CPU, sampling, forward and backward passes, penalty,
update and allocation. On a GPU it is in bf16, PEFT's under autocast with adapters in fp32, on a CPU
in fp32.

`--lengths sft`: log-normal lengths with a median of 350 tokens and a 95th percentile of 1,400, cut
at 2,048; this engine packs them, peers pad them. As many rows make a batch as give about as many
tokens as full sequences do.

Rows of the table take turns, a turn being a pass over all batches with one synchronisation at its
end; medians of the turns by the wall clock. Memory is the allocator's peak from before a row is
built to the end of its warm-up.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import torch
from against import add_option, compared
from causal_rows import ADAMW, LORA, OF_THIS_ENGINE, OURS, ROWS, Setting, Step
from decoder_sizes import SIZES, Size
from drawn_weights import drawn_backbone
from gpu_step import comma_list, peak_memory_of
from measure import describe, environment, synchronize
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from bayeslora_cli.data.tokenised_split import TokenisedSplit, row_sums
from bayeslora_cli.execution.device import set_precision
from bayeslora_cli.methods import building

MEDIAN, NEAR_LONGEST, LONGEST = 350, 1400, 2048  # tokens of an SFT row
ON_GPU = [OURS, LORA, "adalora-ivon-graphs", "peft-adalora", "peft-lora", "peft-lora-liger"]
ON_CPU = [OURS, LORA, "adalora-ivon-in-bf16", "peft-lora"]


def split_of(size: Size, workload: str, batches: int) -> tuple[TokenisedSplit, list[Tensor]]:
    """Random rows, and the rows of each batch."""
    draws = torch.Generator().manual_seed(0)
    tokens = size.rows * size.tokens
    if workload == "full":
        lengths = torch.full((batches * size.rows,), size.tokens)
        rows = list(torch.arange(len(lengths)).split(size.rows))
    else:
        sigma = math.log(NEAR_LONGEST / MEDIAN) / statistics.NormalDist().inv_cdf(0.95)
        many = torch.randn(batches * (16 + tokens // MEDIAN), generator=draws) * sigma
        drawn = (many + math.log(MEDIAN)).exp().round().long().clamp(16, LONGEST)
        each = max(1, round(tokens / float(drawn.float().mean())))
        lengths = drawn[: batches * each]
        rows = list(torch.arange(len(lengths)).split(each))
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    counted = torch.ones(int(offsets[-1]), dtype=torch.bool)
    counted[offsets[:-1]] = False
    ids = torch.randint(4, size.options["vocab_size"], counted.shape, generator=draws)
    split = TokenisedSplit(
        tokens=ids.int(), offsets=offsets, token_types=None,
        labels=torch.zeros(len(lengths), dtype=torch.int64), counted=counted,
        counts=row_sums(counted, offsets), packed=True, pad_id=0,
    )  # fmt: skip
    return split, rows


@dataclass(kw_only=True, slots=True)
class Row:
    """One side of the table."""

    key: str
    label: str
    step: Step
    batches: list[Tensor]
    done: int = 0
    """Steps so far."""
    ms: list[float] = field(default_factory=list)
    """Milliseconds per step, of each timed turn."""
    cpu_ms: list[float] = field(default_factory=list)
    """The same of the process's own time on the CPUs: what a busy machine's clock does not show."""
    peak_bytes: int | None = None
    first_seconds: float = 0.0
    """Time of building and warming up, compiling included."""

    def turn(self) -> None:
        """A step on each batch."""
        for rows in self.batches:
            self.step(self.done, rows)
            self.done += 1

    def timed_turn(self, device: torch.device) -> None:
        """A turn, into `ms`."""
        synchronize(device)
        start = time.perf_counter(), time.process_time()
        self.turn()
        synchronize(device)
        passed = time.perf_counter() - start[0], time.process_time() - start[1]
        for found, seconds in zip((self.ms, self.cpu_ms), passed, strict=True):
            found.append(1e3 * seconds / len(self.batches))


def measure(model: str, size: Size, options: argparse.Namespace) -> tuple[list[Row], float]:
    """Build, warm up and time the rows; also return the mean number of tokens per step."""
    device = torch.device(options.device)
    precision = "bf16" if device.type == "cuda" else "fp32"
    set_precision(precision)
    split, batches = split_of(size, options.lengths, options.batches)
    steps = (options.warm_up + options.repeats) * len(batches)
    setting = Setting(
        model=model, size=size, split=split, device=device, total=2 * steps, precision=precision
    )
    rows: list[Row] = []
    for key in options.rows:
        label, build = ROWS[key]
        memory: dict[str, int | None] = {}
        start = time.perf_counter()
        torch.manual_seed(0)
        try:
            with peak_memory_of(memory, device):
                row = Row(key=key, label=label, step=build(setting), batches=batches)
                for _ in range(options.warm_up):
                    row.turn()
        except Exception as error:  # a peer that fails shall not cost the other rows
            if key in OF_THIS_ENGINE:
                raise
            print(f"{label}: {type(error).__name__} {str(error)[:300]}", flush=True)
            continue
        synchronize(device)
        row.first_seconds = time.perf_counter() - start
        row.peak_bytes = memory["peak"]
        rows.append(row)
        print(f"{label}: ready in {row.first_seconds:.0f} s", file=sys.stderr, flush=True)
    for _ in range(options.repeats):
        for row in rows:
            row.timed_turn(device)
            print(f"{row.label}: {row.ms[-1]:.1f} ms", file=sys.stderr, flush=True)
    for row in rows:  # a state that is no longer finite is no training
        engine = getattr(row.step, "engine", None)
        if engine is not None:
            bad = engine.bad_step()
            if bad is not None:
                print(f"{row.label}: step {bad} was not finite, and nothing changed after it")
            failure = getattr(engine.runner, "failure", None)
            if failure is not None:
                print(f"{row.label}: not captured: {failure}")
    return rows, float(split.lengths.sum()) / len(batches)


def table(rows: list[Row], tokens: float) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| | ms per step | fastest – slowest turn | tokens per second | of LoRA + AdamW here "
        "| of AdaLoRA + AdamW here | ours is faster by | peak GiB | ready in, s | CPU time, ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def against(row: Row, key: str) -> str:
        """The median of the turns' ratios; turns lie side by side in time."""
        other = next((r for r in rows if r.key == key), None)
        if other is None:
            return "–"
        return f"{statistics.median(a / b for a, b in zip(row.ms, other.ms, strict=True)):.2f}"

    for row in rows:
        median = statistics.median(row.ms)
        peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
        cells = [
            row.label, f"{median:.1f}", f"{min(row.ms):.1f} – {max(row.ms):.1f}",
            f"{1e3 * tokens / median:,.0f}", against(row, LORA), against(row, ADAMW),
            against(row, OURS), peak, f"{row.first_seconds:.0f}",
            f"{statistics.median(row.cpu_ms):.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save_model(size: Size, directory: str, device: torch.device) -> None:
    """Save random weights; a GPU draws them in a second."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        module = AutoModelForCausalLM.from_config(size.config(), dtype=dtype)
    module.save_pretrained(directory)
    del module
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="smollm2")
    parser.add_argument("--lengths", choices=("full", "sft"), default="full")
    parser.add_argument("--rows", type=comma_list(tuple(ROWS)), help="sides of the table")
    parser.add_argument("--repeats", type=int, default=8, help="timed turns")
    parser.add_argument("--warm-up", type=int, default=2, help="turns before them")
    parser.add_argument("--batches", type=int, help="batches of a turn")
    parser.add_argument("--batch-size", type=int, help="rows of a full batch")
    parser.add_argument("--layers", type=int, help="fewer blocks")
    parser.add_argument("--tokens", type=int, help="tokens of a full row")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--profile", type=int, default=0, help="list so many kernels of our rows")
    parser.add_argument("--gaps", action="store_true", help="when the GPU waits in a turn")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    add_option(parser)
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    options.rows = options.rows or (ON_GPU if on_gpu else ON_CPU)
    usual = {"full": 3, "sft": 8}[options.lengths] if on_gpu else 1
    options.batches = options.batches or usual
    if not on_gpu and options.size == "smollm2":
        options.batch_size, options.tokens = options.batch_size or 4, options.tokens or 256
    return options


def main() -> None:
    """Print the table."""
    options = parse_options()
    if compared(__file__, options):
        return
    device, size = torch.device(options.device), SIZES[options.size]
    changes = {"rows": options.batch_size, "tokens": options.tokens}
    size = replace(size, **{name: value for name, value in changes.items() if value})
    if options.layers:
        size = replace(size, options=size.options | {"num_hidden_layers": options.layers})
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    else:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    found = environment(device)
    print(f"{describe(found)}\n`{' '.join(['python', *sys.argv])}`\n")
    with tempfile.TemporaryDirectory() as model, ExitStack() as stack:
        if OF_THIS_ENGINE.issuperset(options.rows):  # nobody reads a file
            size.config().save_pretrained(model)
            stack.enter_context(patch.object(building, "load_backbone", drawn_backbone))
        else:
            save_model(size, model, device)
        rows, tokens = measure(model, size, options)
    full = options.lengths == "full"
    batch = f"{size.rows} x {size.tokens}" if full else f"SFT rows, {tokens:.0f}"
    print(
        f"{size.name}, {batch} tokens, medians of {options.repeats} turns of "
        f"{len(rows[0].batches)} steps; targets {size.target_ms} ms, {size.target_gib} GiB\n\n"
        + table(rows, tokens),
        flush=True,
    )
    if options.gaps:
        from decoder_block import gaps_of

        for row in rows:
            if row.key in OF_THIS_ENGINE:
                print(f"\n{row.label}, a turn:\n{gaps_of(row.turn)}")
    if options.profile:
        from decoder_block import kernels_of

        for row in rows:
            if row.key in OF_THIS_ENGINE:
                row.batches = row.batches[:1]
                print(f"\n{row.label}, one step:\n{kernels_of(row.turn, 1, options.profile)}")
    if options.json is not None:
        results = [
            {"row": row.key, "label": row.label, "ms": row.ms, "peak_bytes": row.peak_bytes,
             "median_ms": statistics.median(row.ms), "first_seconds": row.first_seconds,
             "cpu_ms": row.cpu_ms}
            for row in rows
        ]  # fmt: skip
        written = {"environment": found, "command": sys.argv, "size": size.name,
                   "lengths": options.lengths, "tokens": tokens, "results": results}  # fmt: skip
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
