"""Times the kernels of B-LoRA's layers in a decoder's block, with several tiles for the dearest.

    python tests/benchmarks/gated_layer.py --size smollm2      # then llama; on one GPU

For each joint of layers with the same input: the forward kernel and all backward kernels together,
in microseconds, medians of replays of a CUDA graph, bf16, rank 12 padded to 16, four widths. The
last row adds up a block, each tile on its own, and says what it makes of a step.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
from decoder_sizes import SIZES
from measure import describe, environment, replayed
from torch import Tensor

from bayeslora_cli.models.kernels.gated import gated_linear_triton as kernels
from bayeslora_cli.models.kernels.gated.gated_linear_triton import BACK, Tiles
from bayeslora_cli.models.kernels.quantize import Quantizers, intervals, quantizers

RANK, LADDER = 16, (2, 4, 8, 16)
TILES = (
    BACK, Tiles(16, 64, 4, 528), Tiles(16, 16, 1, 1056), Tiles(16, 32, 2, 1056),
    Tiles(16, 32, 4, 528), Tiles(32, 16, 1, 1056), Tiles(32, 32, 2, 528), Tiles(32, 64, 8, 264),
)  # fmt: skip


def quantizers_of(layers: int, device: torch.device) -> Quantizers:
    """As at the start of the learning phase, with ranges that clip little."""
    divisors = torch.tensor(intervals(LADDER), dtype=torch.float32, device=device)
    shares = torch.tensor([0.001, 0.001, 0.001, 0.997], device=device).expand(layers, -1)
    ranges = torch.full((layers,), 4.0, device=device).log()
    return quantizers(ranges, torch.ones_like(ranges), divisors.expand_as(shares), shares)


def drawn(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def main() -> None:
    """Print a line per joint and the sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="smollm2")
    size = SIZES[parser.parse_args().size]
    device = torch.device("cuda")
    torch.cuda.set_stream(torch.cuda.Stream())
    o, rows = size.options, size.rows * size.tokens
    hidden, inner = o["hidden_size"], o["intermediate_size"]
    head = o.get("head_dim", hidden // o["num_attention_heads"])
    queries, keys = (head * o[f"num_{name}_heads"] for name in ("attention", "key_value"))
    joints = {
        "q, k, v": (hidden, [queries, keys, keys]), "o": (queries, [hidden]),
        "gate, up": (hidden, [inner, inner]), "down": (inner, [hidden]),
    }  # fmt: skip
    print(f"{describe(environment(device))}\n{size.name}, {rows} tokens; us\n")
    total: Counter[str] = Counter()
    for name, (width, heights) in joints.items():
        layers, outputs = len(heights), sum(heights)
        x, grad = drawn(rows, width, device=device), drawn(rows, outputs, device=device)
        a, b = drawn(layers, RANK, width, device=device), drawn(outputs, RANK, device=device)
        e = torch.ones(layers, RANK, device=device)
        by = [quantizers_of(layers, device) for _ in "xah"]
        p, _ = kernels.forward(x, a, e, *by)
        found = {"forward": 1e3 * replayed([lambda: kernels.forward(x, a, e, *by)], device)}  # noqa: B023
        for tiles in TILES:
            found[str(tuple(tiles))] = 1e3 * replayed(
                [lambda: kernels.backward(
                    grad, heights, x, p, a, e, b, by[0], by[1], by[2].constants, tiles  # noqa: B023
                )],
                device,
            )  # fmt: skip
        total.update(found)
        print(f"{name:9}" + ", ".join(f"{key} {us:.1f}" for key, us in found.items()), flush=True)
    blocks = o["num_hidden_layers"]
    print(f"\na block: {', '.join(f'{key} {us:.1f}' for key, us in total.items())}")
    print(f"a step's {blocks} blocks, ms: "
          + ", ".join(f"{key} {us * blocks / 1e3:.2f}" for key, us in total.items()))  # fmt: skip


if __name__ == "__main__":
    main()
