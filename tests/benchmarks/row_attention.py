"""Attention within packed rows on one GPU: the operator's kernels, and how they cut their work.

    python tests/benchmarks/row_attention.py [--lengths 64,256,mnli] [--precision bf16] [--plain]
        [--tune forward,to_keys] [--kernels]

Milliseconds forward and backward of the operator at DeBERTaV3-base's shapes, ten calls in a CUDA
graph, with dropout and without; beside it torch's kernel for rows of any length, which has neither
positions nor dropout. `--kernels`: time of each kernel. `--tune`: the time with other tiles of some
kernels, one at a time; several processes, each with one kernel, compile at the same time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from gpu_step import comma_list, lengths_of
from measure import describe, environment, replayed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bayeslora_cli.data.packing import bucket
from bayeslora_cli.models.decoders.packed_attention import varlen_attn
from bayeslora_cli.models.kernels.row_attention import row_attention as operator
from bayeslora_cli.models.kernels.row_attention import tiles
from bayeslora_cli.models.kernels.row_attention.tiles import Plan, Tiles

HEADS, SIZE, CALLS = 12, 64, 10
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CUTS = [
    Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 4, 1),
    Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(32, 32, 4, 2),
]  # fmt: skip
"""Tiles that `--tune` tries; kernels of positions take those that are square."""


class Case:
    """A packed batch's queries, keys and values, and the gradient of the result."""

    def __init__(self, workload: str, dtype: torch.dtype, *, relative: bool) -> None:
        lengths = lengths_of(workload, 32, torch.Generator().manual_seed(0))
        offsets = torch.cat((torch.zeros(1), lengths.sort(descending=True)[0].cumsum(0)))
        tokens = bucket(int(offsets[-1]), least=64, per_octave=8)
        self.longest = bucket(int(lengths.max()), least=32, per_octave=2)
        fill = torch.full((1,), tokens)
        self.offsets = torch.cat((offsets, fill)).int().cuda()
        self.relative = relative
        self.reach = operator.reach_of(self.longest)
        more = 2 * self.reach if relative else 0
        shape = (tokens + more, HEADS * SIZE)
        draws = [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3)]
        self.query, self.key = (x.view(-1, HEADS, SIZE).requires_grad_() for x in draws[:2])
        self.value = draws[2][:tokens].view(-1, HEADS, SIZE).requires_grad_()
        self.slope = torch.randn_like(self.value)

    def ours(self, dropout: float) -> Tensor:
        given = self.query, self.key, self.value, self.offsets
        if self.relative:
            return operator.relative_row_attention(
                *given, self.reach, scaling=SIZE**-0.5, dropout=dropout
            )
        return operator.row_attention(*given, self.longest, scaling=SIZE**-0.5, dropout=dropout)

    def torchs(self) -> Tensor:
        tokens, most = len(self.value), self.longest
        found: Tensor = varlen_attn(
            self.query[:tokens], self.key[:tokens], self.value, self.offsets, self.offsets, most,
            most,
        )  # fmt: skip
        return found

    def both_ways(self, forward: Callable[[], Tensor]) -> Callable[[], None]:
        given = self.query, self.key, self.value
        return lambda: torch.autograd.grad(forward(), given, self.slope) and None


def milliseconds(call: Callable[[], object]) -> float:
    """Milliseconds of a call, in a graph of `CALLS`."""
    return replayed([call] * CALLS, torch.device("cuda"))


def time_case(case: Case, dtype: torch.dtype) -> list[str]:
    """The cells of a line: with dropout, forward alone with it, without it, torch's kernel."""
    cells = [milliseconds(case.both_ways(lambda: case.ours(0.1)))]
    with torch.no_grad():
        cells.append(milliseconds(lambda: case.ours(0.1)))
    cells.append(milliseconds(case.both_ways(lambda: case.ours(0.0))))
    if varlen_attn is not None and dtype != torch.float32:
        cells.append(milliseconds(case.both_ways(case.torchs)))
    return [f"{cell:.4f}" for cell in cells]


def kernels(case: Case) -> None:
    """Print microseconds of each kernel of a call with dropout."""
    call = case.both_ways(lambda: case.ours(0.1))
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    for event in sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)[:12]:
        print(f"    {event.self_device_time_total / CALLS:8.1f} us  {event.key[:60]}")


def tune(case: Case, dtype: torch.dtype, fields: list[str]) -> None:
    """Print the time of both ways with other tiles of some kernels, one at a time."""
    name = "FULL" if dtype == torch.float32 else "HALVED"
    plan = getattr(tiles, name)
    call = case.both_ways(lambda: case.ours(0.1))
    for field in fields:
        for cut in CUTS:
            if field == "positions" and cut.own != cut.other:
                continue
            setattr(tiles, name, plan._replace(**{field: cut}))
            try:
                print(f"    {field:10} {tuple(cut)!s:18} {milliseconds(call):.4f}", flush=True)
            except Exception as error:  # too much shared memory, say
                print(f"    {field:10} {tuple(cut)!s:18} {type(error).__name__}", flush=True)
    setattr(tiles, name, plan)


def main() -> None:
    """Print a line for each precision and workload, and what was asked for below it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=comma_list(None), default=["64", "256", "mnli"])
    parser.add_argument("--precision", type=comma_list(tuple(TYPES)), default=["bf16"])
    parser.add_argument("--plain", action="store_true", help="without positions")
    parser.add_argument("--tune", type=comma_list(Plan._fields), default=[])
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are not captured on the default stream
    print(f"{describe(environment(torch.device('cuda')))}\n`{' '.join(['python', *sys.argv])}`\n")
    print("ms, both ways with dropout | forward alone | both ways without | torch's kernel")
    torch.manual_seed(0)
    for precision in options.precision:
        for workload in options.lengths:
            dtype = TYPES[precision]
            case = Case(workload, dtype, relative=not options.plain)
            label = f"{precision}, {workload}, {len(case.value)} tokens"
            print(f"{label}: {' | '.join(time_case(case, dtype))}", flush=True)
            if options.kernels:
                kernels(case)
            tune(case, dtype, options.tune)


if __name__ == "__main__":
    main()
