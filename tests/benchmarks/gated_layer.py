"""Times the kernels of B-LoRA's layers in a block, with several ways to cut their work.

    python tests/benchmarks/gated_layer.py --size smollm2      # then llama, deberta; on one GPU

For each joint of layers with the same input: the forward kernel, that of p's gradient, and the
others of the backward pass, each in several ways; microseconds, medians of replays of a CUDA graph,
bf16, rank 12 padded to 16 (8 in DeBERTa, 32 x 64 tokens), four widths. The last row adds up a
block, and says what it makes of a step.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from decoder_sizes import SIZES
from measure import describe, environment, replayed
from torch import Tensor

from bayeslora_cli.models.kernels.gated import gated_input_triton, gated_linear_triton
from bayeslora_cli.models.kernels.gated.gated_input_triton import BACK, Tiles
from bayeslora_cli.models.kernels.gated.gated_linear_triton import FORWARD, TO_P, Strips
from bayeslora_cli.models.kernels.quantize import Quantizers, intervals, quantizers

LADDER = (2, 4, 8, 16)
TILES = (
    BACK, Tiles(16, 16, 1, 2112, 2), Tiles(16, 16, 1, 2112, 3), Tiles(16, 16, 1, 3168),
    Tiles(16, 32, 1, 1584, 2), Tiles(16, 32, 1, 2112), Tiles(16, 64, 4, 528),
    Tiles(32, 16, 1, 1056, 2), Tiles(32, 32, 2, 1056, 2),
)  # fmt: skip
STRIPS = {
    "FORWARD": (FORWARD, Strips(128, 4, 3), Strips(128, 8, 3), Strips(256, 4, 3), Strips(256, 8, 2),
                Strips(512, 8, 3)),
    "TO_P": (TO_P, Strips(128, 4, 3), Strips(256, 2, 4), Strips(256, 4, 3), Strips(512, 4, 3),
             Strips(512, 8, 3)),
}  # fmt: skip


def joints_of(name: str) -> tuple[str, int, int, int, dict[str, tuple[int, int, list[int]]]]:
    """Return a model's name, its tokens, rank and blocks, and its joints: rows, width, heights."""
    if name == "deberta":
        joints = {
            "q, k, v": (2560, 768, [768] * 3), "o": (2048, 768, [768]),
            "up": (2048, 768, [3072]), "down": (2048, 3072, [768]),
        }  # fmt: skip
        return "DeBERTaV3-base", 2048, 8, 12, joints
    size = SIZES[name]
    o, rows = size.options, size.rows * size.tokens
    hidden, inner = o["hidden_size"], o["intermediate_size"]
    head = o.get("head_dim", hidden // o["num_attention_heads"])
    queries, keys = (head * o[f"num_{name}_heads"] for name in ("attention", "key_value"))
    joints = {
        "q, k, v": (rows, hidden, [queries, keys, keys]), "o": (rows, queries, [hidden]),
        "gate, up": (rows, hidden, [inner, inner]), "down": (rows, inner, [hidden]),
    }  # fmt: skip
    return size.name, rows, 16, o["num_hidden_layers"], joints


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
    parser.add_argument("--size", choices=(*SIZES, "deberta"), default="smollm2")
    name, tokens, rank, blocks, joints = joints_of(parser.parse_args().size)
    device = torch.device("cuda")
    torch.cuda.set_stream(torch.cuda.Stream())
    print(f"{describe(environment(device))}\n{name}, {tokens} tokens; us\n")
    total: Counter[str] = Counter()
    for joint, (rows, width, heights) in joints.items():
        found = measured(rows, width, heights, rank, device)
        total.update(found)
        print(f"{joint:9}" + ", ".join(f"{key} {us:.1f}" for key, us in found.items()), flush=True)
    print(f"\na block: {', '.join(f'{key} {us:.1f}' for key, us in total.items())}")
    print(f"a step's {blocks} blocks, ms: "
          + ", ".join(f"{key} {us * blocks / 1e3:.2f}" for key, us in total.items()))  # fmt: skip


def measured(
    rows: int, width: int, heights: list[int], rank: int, device: torch.device
) -> dict[str, float]:
    """Time the kernels of one joint."""
    layers, outputs = len(heights), sum(heights)
    x, grad = drawn(rows, width, device=device), drawn(rows, outputs, device=device)
    a, b = drawn(layers, rank, width, device=device), drawn(outputs, rank, device=device)
    e = torch.ones(layers, rank, device=device)
    by = [quantizers_of(layers, device) for _ in "xah"]
    p, _ = gated_linear_triton.forward(x, a, e, *by)
    to_p = grad, heights, p, e, b, by[1], by[2].constants
    gradient, sums = gated_linear_triton.back_to_p(*to_p)
    kernels: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "FORWARD": (gated_linear_triton.forward, (x, a, e, *by)),
        "TO_P": (gated_linear_triton.back_to_p, to_p),
    }
    found = {}
    for name, (kernel, given) in kernels.items():
        for strips in STRIPS[name]:
            with patch.object(gated_linear_triton, name, strips):
                us = 1e3 * replayed([lambda: kernel(*given)], device)  # noqa: B023
            found[f"{name.lower()} {tuple(strips)}"] = us
    for tiles in TILES:
        found[f"to_x {tuple(tiles)}"] = 1e3 * replayed(
            [lambda: gated_input_triton.back_to_x(x, gradient, sums, a, by[0], tiles=tiles)],  # noqa: B023
            device,
        )
    return found


if __name__ == "__main__":
    main()
