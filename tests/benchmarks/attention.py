"""One DeBERTa attention layer: this engine's against disentangled-flash's kernels, on one GPU.

    pip install disentangled-flash && python tests/benchmarks/attention.py [--lengths 64,128,256]

Forward, and backward to the layer's input, ten of them in one CUDA graph, medians of the replays:
DeBERTaV3-base's shapes, random weights, rows half to fully padded, dropout on. Before that the
difference of the results without dropout, relative to the norm.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from gpu_step import ARCHITECTURE, comma_list
from measure import describe, environment
from torch import Tensor, nn
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from bayeslora_cli.deberta import RelativeAttention

CALLS = 10  # in a graph
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def replayed(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds a call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    return statistics.median(times)


def compare(
    ours: nn.Module, theirs: nn.Module, rows: int, length: int, dtype: torch.dtype, repeats: int
) -> list[float]:
    """The results' difference, and the times of ours, compiled and as it is, and of theirs."""
    hidden = ARCHITECTURE["hidden_size"]
    relative = torch.randn(512, hidden, device="cuda", dtype=dtype)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), device="cuda")
    lengths[0] = length
    mask = torch.arange(length, device="cuda") < lengths
    pairs = mask[:, None, None, :] & mask[:, None, :, None]
    x = torch.randn(rows, length, hidden, device="cuda", dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x) * mask[..., None]
    compiled = torch.compile(ours, dynamic=False)

    def run(layer: Callable[..., tuple[Tensor, ...]], seen: Tensor) -> Tensor:
        return layer(x, seen, rel_embeddings=relative)[0].view_as(x)

    with torch.no_grad():
        a, b = run(ours.eval(), pairs), run(theirs.eval(), mask)
        difference = float(((a - b) * mask[..., None]).norm() / (a * mask[..., None]).norm())
    ours.train()
    theirs.train()
    sides = ((compiled, pairs), (ours, pairs), (theirs, mask))
    return [
        difference,
        *(
            replayed(lambda side=side: torch.autograd.grad(run(*side), x, gradient), repeats)  # type: ignore[misc]
            for side in sides
        ),
    ]


def main() -> None:
    """Print a line a precision and length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=comma_list(None), default=["64", "128", "256"])
    parser.add_argument("--precision", type=comma_list(tuple(TYPES)), default=["bf16"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    from disentangled_flash.training import TritonTrainingDisentangledSelfAttention

    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are not captured on the default stream
    print(f"{describe(environment(torch.device('cuda')))}\n`{' '.join(['python', *sys.argv])}`\n")
    print("| | difference | ours, compiled | ours, not compiled | disentangled-flash |")
    print("|---|---|---|---|---|")
    config = DebertaV2Config(**ARCHITECTURE)
    torch.manual_seed(0)
    original = DisentangledSelfAttention(config).cuda().requires_grad_(requires_grad=False)
    theirs = TritonTrainingDisentangledSelfAttention(config).cuda()
    theirs.load_state_dict(original.state_dict(), strict=False)
    theirs.requires_grad_(requires_grad=False)
    ours = RelativeAttention(original, 512).cuda()
    for precision in options.precision:
        dtype = TYPES[precision]
        for length in map(int, options.lengths):
            difference, *times = compare(
                ours.to(dtype), theirs.to(dtype), options.rows, length, dtype, options.repeats
            )
            cells = [f"{difference:.1e}", *(f"{ms:.3f} ms" for ms in times)]
            print(f"| {precision}, {length} tokens | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
