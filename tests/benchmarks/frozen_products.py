"""Times of products with frozen weights in each precision, forward and back, and of their parts.

    python tests/benchmarks/frozen_products.py --size llama        # then qwen; on one H200

The seven products of a block with q, k and v, and gate and up projection as one, as a step computes
them; microseconds, in a CUDA graph. `dequantize` and `transpose` are of a weight, `rows` of the
quantizing of activations, `gradients` that of gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from decoder_sizes import SIZES, Size
from measure import describe, environment, replayed
from torch import Tensor

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, implementation
from bayeslora_cli.models.kernels.frozen.arithmetic import ARITHMETICS, DENSE
from bayeslora_cli.models.kernels.frozen.fp8_rows import quantize_rows, transposed


def shapes(size: Size) -> dict[str, tuple[int, int]]:
    """(out, in) of a block's products."""
    o = size.options
    hidden, inner, heads = o["hidden_size"], o["intermediate_size"], o["num_attention_heads"]
    width = o.get("head_dim", hidden // heads)
    return {
        "q, k, v": ((heads + 2 * o["num_key_value_heads"]) * width, hidden),
        "o": (hidden, heads * width),
        "gate, up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def parts(name: str, weight: Tensor, rows: Tensor, grad: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed of a precision."""
    height, width = weight.shape
    if name == DENSE:
        kind, stored = ARITHMETICS[DENSE], [weight]
    else:
        form = implementation(BASE_PRECISIONS[name].implementation)
        kind, stored = ARITHMETICS[form.arithmetic], [*form.quantize(weight).values()]
    found: dict[str, Callable[[], Any]] = {
        "forward": lambda: kind.multiply(rows, stored, [height], None),
        "back": lambda: kind.multiply_back(grad, stored, [height], width),
    }
    if name == "fp8":
        found |= {
            "rows": lambda: quantize_rows(rows),
            "gradients": lambda: quantize_rows(grad, stored[1]),
            "transpose": lambda: transposed(stored[0]),
        }
        found |= tiles(rows, grad, *stored) if rows.is_cuda else {}
    elif name != DENSE:
        out = torch.empty_like(weight)
        found["dequantize"] = lambda: kind.dequantize(stored, out)
    return found


def tiles(rows: Tensor, grad: Tensor, codes: Tensor, scale: Tensor) -> dict[str, Callable[[], Any]]:
    """Other ways to cut the kernels' work."""
    from bayeslora_cli.models.kernels.frozen import fp8_rows_triton as kernels

    def so(call: Callable[[], Any], **values: int) -> Callable[[], Any]:
        def changed() -> None:
            with patch.multiple(kernels, **values):
                call()

        return changed

    found = {
        "rows read twice": so(lambda: quantize_rows(rows), MOST=0),
        "gradients read twice": so(lambda: quantize_rows(grad, scale), MOST=0),
        "gradients, 64 each": so(lambda: quantize_rows(grad, scale), EACH=64),
        "gradients, 16 each": so(lambda: quantize_rows(grad, scale), EACH=16),
    }
    for block, warps in ((2048, 16), (4096, 8), (4096, 16), (8192, 8), (8192, 16), (8192, 32)):
        found[f"gradients read twice, {block}, {warps}"] = so(
            lambda: quantize_rows(grad, scale), MOST=0, BLOCK=block, LONG_WARPS=warps
        )
    for tile, warps in ((32, 4), (64, 8), (128, 4), (128, 8)):
        found[f"transpose {tile}, {warps}"] = so(lambda: transposed(codes), TILE=tile, WARPS=warps)
    return found


def main() -> None:
    """Print a table for each product."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="llama")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, size = torch.device(options.device), SIZES[options.size]
    dtype = torch.bfloat16
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    print(f"{describe(environment(device))}\n`{' '.join(['python', *sys.argv])}`\n")
    print(f"{size.name}, {size.rows} x {size.tokens} tokens, microseconds")
    count, totals = size.rows * size.tokens, dict[str, float]()
    for product, (height, width) in shapes(size).items():
        weight, rows, grad = (
            torch.randn(*shape, device=device, dtype=dtype)
            for shape in ((height, width), (count, width), (count, height))
        )
        for name in (DENSE, *(n for n, e in BASE_PRECISIONS.items() if e.quantized)):
            cells = []
            for what, call in parts(name, weight, rows, grad).items():
                us = 1e3 * replayed([call], device)
                cells.append(f"{what} {us:.0f}")
                if what in ("forward", "back"):
                    totals[name] = totals.get(name, 0.0) + us
            print(f"  {product} {width} -> {height}, {name}: {', '.join(cells)}", flush=True)
    layers = size.options["num_hidden_layers"]
    print("all blocks, forward and back, in ms: " + ", ".join(
        f"{name} {layers * us / 1e3:.1f}" for name, us in totals.items()
    ))  # fmt: skip


if __name__ == "__main__":
    main()
