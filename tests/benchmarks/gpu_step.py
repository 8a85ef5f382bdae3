"""Time, memory and launches of a training step on one GPU: this engine and its peers, in one run.

    python tests/benchmarks/gpu_step.py [--lengths 64,256,mnli] [--precision fp32,bf16]
        [--rows adalora-ivon,peft-adalora-adamw] [--repeats 9] [--json FILE]
    python tests/benchmarks/gpu_step.py --model minilm --lengths rte,mrpc --precision bf16
    python tests/benchmarks/gpu_step.py --device cpu --tiny --repeats 2     # does it run at all?

All rows get DeBERTaV3-base by its configuration, with `--model minilm` that of MiniLM-L6, with the
same random weights, the same targets and the same batches, dropout on. Adaptive rows allocate at
every timed step, the dearest case. In bf16 PEFT runs under autocast, as people run it; this engine
as `--precision bf16` does, and the forward passes alone in bf16 throughout. fp32 is without TF32.

Rows take turns, so that a slow moment of the machine hits all of them. A turn is a pass over the
workload's batches with one synchronisation at its end; the time is the wall clock's. Memory is the
allocator's peak from before a row is built to the end of its warm-up.

`--lengths mnli`: the lengths of the examples are drawn from a log-normal with a median of 37 and
a 95th percentile of 75 tokens, about what MNLI's pairs have in DeBERTa's tokens, and a batch is
padded to its longest. The last column is then the time of MNLI's 85,904 steps at that pace. `rte`
and `mrpc` are drawn likewise, by what their rows have in MiniLM's tokens.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from against import add_option, compared
from gpu_rows import BASE, LORA, ROWS, Batch, Setting
from measure import Work, describe, environment, synchronize, work_of
from peers import Step
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from bayeslora_cli.execution.device import set_precision

ARCHITECTURE: dict[str, Any] = {
    "vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "position_buckets": 256, "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "relative_attention": True,
    "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
    "pooler_dropout": 0.0, "pooler_hidden_size": 768,
}  # fmt: skip
TINY: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "pooler_hidden_size": 32,
}  # fmt: skip
MINILM: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deberta": ("DeBERTaV3-base architecture", "deberta-v2", ARCHITECTURE),
    "minilm": ("MiniLM-L6 architecture", "bert", MINILM),
}
"""Name -> what tables call it, transformers' model type, and its configuration."""
MNLI_STEPS = 85_904
DRAWN = {"mnli": (37, 75), "rte": (56, 157), "mrpc": (53, 74)}
"""Task -> median and 95th percentile of its rows' tokens."""
SHORTEST, LONGEST = 8, 256


# ---- workloads


def lengths_of(workload: str, examples: int, generator: torch.Generator) -> Tensor:
    """Tokens of each example, (examples,)."""
    if workload not in DRAWN:
        return torch.full((examples,), int(workload))
    median, high = DRAWN[workload]
    sigma = math.log(high / median) / statistics.NormalDist().inv_cdf(0.95)
    drawn = (torch.randn(examples, generator=generator) * sigma + math.log(median)).exp()
    return drawn.round().long().clamp(SHORTEST, LONGEST)


def make_batches(
    workload: str, count: int, size: int, vocabulary: int, device: torch.device
) -> list[Batch]:
    """`count` batches of `size` random examples, on the device."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = lengths_of(workload, size, generator)
        width = int(lengths.max())
        inside = torch.arange(width) < lengths[:, None]
        ids = torch.randint(4, vocabulary, (size, width), generator=generator)
        batch = {
            "input_ids": ids.where(inside, 0),
            "attention_mask": inside.long(),
            "labels": torch.randint(0, 2, (size,), generator=generator),
        }
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches


def architecture_of(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return transformers' model type and the configuration to build."""
    _, kind, architecture = MODELS[options.model]
    return kind, architecture | (TINY if options.tiny else {})


# ---- measuring


@dataclass(kw_only=True, slots=True)
class Row:
    """One side of one table."""

    key: str
    label: str
    step: Step
    batches: list[Batch]
    done: int = 0
    """Steps so far."""
    ms: list[float] = field(default_factory=list)
    """Milliseconds a step, of each timed turn."""
    peak_bytes: int | None = None
    work: Work | None = None

    def turn(self, batches: list[Batch]) -> None:
        """A step on each of the batches."""
        for batch in batches:
            self.step(self.done, batch)
            self.done += 1

    def timed_turn(self, device: torch.device) -> None:
        """A turn over all batches, into `ms`."""
        synchronize(device)
        start = time.perf_counter()
        self.turn(self.batches)
        synchronize(device)
        self.ms.append(1e3 * (time.perf_counter() - start) / len(self.batches))


@contextmanager
def peak_memory_of(row: dict[str, int | None], device: torch.device) -> Iterator[None]:
    """Put into row["peak"] what the block adds at its peak, in bytes; None on a CPU."""
    row["peak"] = None
    if device.type != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield
    synchronize(device)
    row["peak"] = torch.cuda.max_memory_allocated(device) - before


def measure(
    keys: list[str], workload: str, model: str, precision: str, options: argparse.Namespace
) -> list[Row]:
    """Build, warm up and time the rows of one table."""
    device = torch.device(options.device)
    set_precision(precision, deterministic=options.deterministic)
    count = options.mnli_batches if workload in DRAWN else options.inner
    size, vocabulary = options.batch_size, architecture_of(options)[1]["vocab_size"]
    batches = make_batches(workload, count, size, vocabulary, device)
    steps = (options.warm_up + options.repeats) * count + 1
    setting = Setting(model=model, device=device, precision=precision, total=2 * steps)
    rows: list[Row] = []
    for key in keys:
        label, build = ROWS[key]
        print(f"{precision}, {workload}: {label}", file=sys.stderr)
        memory: dict[str, int | None] = {}
        torch.manual_seed(0)
        with peak_memory_of(memory, device):
            row = Row(key=key, label=label, step=build(setting), batches=batches)
            for _ in range(options.warm_up):
                row.turn(batches)
        row.peak_bytes = memory["peak"]
        rows.append(row)
    for _ in range(options.repeats):
        for row in rows:
            row.timed_turn(device)
    for row in rows:
        row.work = work_of(lambda row=row: row.turn(row.batches[:1]), device)  # type: ignore[misc]
    return rows


# ---- reporting


def ratio(row: Row, rows: list[Row], key: str, *, faster: bool) -> str:
    """Against the row `key`, the median of the turns' ratios; turns lie side by side in time."""
    other = next((r for r in rows if r.key == key), None)
    if other is None:
        return "–"
    pairs = zip(other.ms, row.ms, strict=True)
    return f"{statistics.median((a / b) if faster else (b / a) for a, b in pairs):.2f}"


def table(rows: list[Row], workload: str) -> str:
    """The rows as a Markdown table."""
    last = " 85,904 steps, min |" if workload == "mnli" else ""
    lines = [
        "| | ms a step | fastest – slowest turn | times as fast as PEFT AdaLoRA + AdamW "
        f"| of LoRA + AdamW here | peak GiB | kernels | launches |{last}",
        "|---|---|---|---|---|---|---|---|" + ("---|" if last else ""),
    ]
    for row in rows:
        median = statistics.median(row.ms)
        peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
        kernels, launches = (row.work.kernels, row.work.launches) if row.work else ("–", "–")
        cells = [
            row.label, f"{median:.2f}", f"{min(row.ms):.2f} – {max(row.ms):.2f}",
            ratio(row, rows, BASE, faster=True), ratio(row, rows, LORA, faster=False), peak,
            str(kernels), str(launches),
        ]  # fmt: skip
        if last:
            cells.append(f"{median * MNLI_STEPS / 60e3:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comma_list(known: tuple[str, ...] | None) -> Callable[[str], list[str]]:
    """A parser of `a,b,c`, of these words alone; None: of whole numbers and tasks."""

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in known if known else not (word in DRAWN or word.isdigit()):
                raise argparse.ArgumentTypeError(f"{word}: not one of {known or ('N', *DRAWN)}")
        return words

    return parse


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=comma_list(tuple(ROWS)), default=list(ROWS))
    parser.add_argument("--lengths", type=comma_list(None), default=["64", "256", "mnli"])
    parser.add_argument("--precision", type=comma_list(("fp32", "bf16")), default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=9, help="timed turns a row")
    parser.add_argument("--warm-up", type=int, default=2, help="turns before them")
    parser.add_argument("--inner", type=int, default=5, help="batches a turn, at one length")
    parser.add_argument(
        "--mnli-batches", type=int, default=24, help="batches a turn, of a task's lengths"
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="deberta")
    parser.add_argument("--deterministic", action="store_true", help="as a run's --deterministic")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny backbone")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    add_option(parser)
    return parser.parse_args()


def main() -> None:
    """Print a table for each precision and workload."""
    options = parse_options()
    if compared(__file__, options):
        return
    if options.device != "cpu":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    warnings.simplefilter("ignore")
    disable_progress_bar()
    found = environment(torch.device(options.device))
    kind, architecture = architecture_of(options)
    name = f"a tiny {options.model}" if options.tiny else MODELS[options.model][0]
    print(f"{describe(found)}\n`{' '.join(['python', *sys.argv])}`")
    results = []
    with tempfile.TemporaryDirectory() as model:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(
            CONFIG_MAPPING[kind](**architecture)
        ).save_pretrained(model)
        for precision in options.precision:
            for workload in options.lengths:
                rows = measure(options.rows, workload, model, precision, options)
                drawn = f"lengths like {workload.upper()}'s"
                tokens = drawn if workload in DRAWN else f"{workload} tokens"
                print(
                    f"\n{name}, batch {options.batch_size}, {tokens}, {precision}, dropout on, "
                    f"medians of {options.repeats} turns of {len(rows[0].batches)} steps\n\n"
                    + table(rows, workload),
                    flush=True,
                )
                results += [
                    {
                        "precision": precision, "workload": workload, "row": row.key,
                        "label": row.label, "ms": row.ms, "median_ms": statistics.median(row.ms),
                        "peak_bytes": row.peak_bytes, "work": row.work and asdict(row.work),
                        "widths": [b["input_ids"].shape[1] for b in row.batches],
                    }
                    for row in rows
                ]  # fmt: skip
                # after each table: a later one may fail, and device time is dear
                if options.json is not None:
                    written = {"environment": found, "command": sys.argv, "results": results}
                    options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
                del rows  # before the next table's are built


if __name__ == "__main__":
    main()
