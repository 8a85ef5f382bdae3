"""An adapted layer's products, by separate products and by the kernels that join them.

    python tests/benchmarks/joint_products.py [--models deberta,llama] [--tokens 1312] [--tune]
    python tests/benchmarks/joint_products.py --models deberta --precision fp32 --tune
    python tests/benchmarks/joint_products.py --models tiny --device cpu     # does it run at all?

Times are microseconds per product, in CUDA graphs, over several sets of operands that together do
not fit into the GPU's cache. "frozen" is x W' and dY W by themselves, "separate" are the products
of the dense form without the kernels. "appended" are cuBLAS's products with the factor of one side
beside the weight, without the kernels that this would need before or after them. In fp32 "split"
are products of halves in fp16, those of rows and factors made anew. `--tune` adds the fused or
split kernel by its tiles, the fastest first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from measure import replayed
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.low_rank import low_rank_linear as kernel
from bayeslora_cli.models.kernels.low_rank.split_linear import halves_of
from bayeslora_cli.models.kernels.low_rank.tiles import (
    LARGE_SPLIT,
    SPLIT,
    Tiles,
    gpu_of,
    split_tiles,
)

Run = Callable[[], Any]
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CACHE = 100 << 20
"""Bytes of operands that no GPU's cache holds."""


class Product(NamedTuple):
    """One product of a block: joint layers are one."""

    name: str
    width: int
    height: int
    rank: int


MODELS: dict[str, tuple[list[int], list[Product]]] = {
    "deberta": (
        [1312, 2048, 8192],
        [Product("qkv", 768, 2304, 16), Product("o", 768, 768, 8), Product("f1", 768, 3072, 8),
         Product("f2", 3072, 768, 8)],
    ),
    "smollm2": (
        [8192],
        [Product("qkv", 576, 960, 40), Product("o", 576, 576, 16), Product("gu", 576, 3072, 24),
         Product("d", 1536, 576, 16)],
    ),
    "llama": (
        [8192],
        [Product("qkv", 2048, 3072, 40), Product("o", 2048, 2048, 16),
         Product("gu", 2048, 16384, 24), Product("d", 8192, 2048, 16)],
    ),
    "qwen": (
        [4096],
        [Product("qkv", 3584, 4608, 40), Product("o", 3584, 3584, 16),
         Product("gu", 3584, 37888, 24), Product("d", 18944, 3584, 16)],
    ),
    "tiny": ([32], [Product("a", 48, 96, 8), Product("b", 96, 48, 8)]),
}  # fmt: skip


class Operands:
    """A product's operands, with what its backward pass has."""

    def __init__(self, n: int, product: Product, device: torch.device, dtype: torch.dtype) -> None:
        _, width, height, rank = product

        def drawn(*shape: int) -> Tensor:
            scale = 1.0 if shape[0] == n else shape[-1] ** -0.5
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        self.x, self.grad, self.bias = drawn(n, width), drawn(n, height), drawn(1, height)[0]
        self.weight, self.down = drawn(height, width), drawn(rank, width)
        self.up = drawn(rank, height).t()
        self.with_up = torch.cat((self.weight, self.up), 1)
        self.with_down = torch.cat((self.weight, self.down))
        self.h, self.to_h = self.x @ self.down.t(), self.grad @ self.up
        self.halves = halves_of(self.weight) if dtype == torch.float32 else None


def ways(s: Operands) -> Iterator[tuple[str, str, Run]]:
    """Yield (what it computes, how, call)."""
    yield "y", "frozen", lambda: F.linear(s.x, s.weight, s.bias)
    yield "dx", "frozen", lambda: s.grad @ s.weight
    yield "y", "separate", lambda: kernel.separate_forward(s.x, s.weight, s.bias, s.down, s.up)
    yield "dx", "separate", lambda: (s.grad @ s.weight).addmm_(s.grad @ s.up, s.down)
    yield "dA, dB", "separate", lambda: (s.to_h.t() @ s.x, s.h.t() @ s.grad)
    yield "y", "appended", lambda: F.linear(s.x, s.with_down)
    yield "dx", "appended", lambda: s.grad @ s.with_up
    if not s.x.is_cuda:
        return
    from bayeslora_cli.models.kernels.low_rank import gradients_triton

    if s.halves is not None:
        from bayeslora_cli.models.kernels.low_rank import split_triton

        yield "y", "split", lambda: by_halves(s, None, transposed=True)
        yield "dx", "split", lambda: by_halves(s, None, transposed=False)
        yield "y", "the rows' halves", lambda: split_triton.split(s.x)
        yield "dx", "the rows' halves", lambda: split_triton.split(s.grad)
        yield "dA, dB", "split", lambda: gradients_triton.gradients(s.to_h, s.x, s.h, s.grad)
        return
    yield "y", "fused", lambda: kernel.fused(s.x, s.weight.t(), s.down, s.up.t(), s.bias)
    yield "dx", "fused", lambda: kernel.fused(s.grad, s.weight, s.up.t(), s.down, None)
    yield "dA, dB", "fused", lambda: gradients_triton.gradients(s.to_h, s.x, s.h, s.grad)


def by_halves(s: Operands, tiles: Tiles | None, *, transposed: bool) -> Tensor:
    """Compute y (`transposed`) or dx by products of halves; `tiles`: None: the usual ones."""
    from bayeslora_cli.models.kernels.low_rank.split_triton import product

    assert s.halves is not None
    if tiles is None:
        columns = len(s.weight) if transposed else s.weight.shape[1]
        tiles = split_tiles(len(s.x), columns, len(s.down), gpu_of(s.x.device))
    if transposed:
        return product(s.x, *s.halves, s.down, s.up.t(), s.bias, tiles, transposed=True)[0]
    return product(s.grad, *s.halves, s.up.t(), s.down, None, tiles, transposed=False)[0]


TILES = [
    Tiles(128, 256, 64, 8, 3), Tiles(128, 128, 64, 8, 3), Tiles(128, 128, 64, 4, 3),
    Tiles(64, 256, 64, 4, 3), Tiles(64, 128, 64, 4, 4), Tiles(64, 128, 64, 4, 3),
    Tiles(64, 64, 128, 4, 3), Tiles(128, 64, 64, 4, 4),
]  # fmt: skip
SPLIT_TILES = [
    SPLIT, LARGE_SPLIT, Tiles(64, 128, 64, 4, 2), Tiles(64, 128, 32, 4, 2),
    Tiles(64, 128, 32, 4, 3), Tiles(128, 128, 32, 8, 3), Tiles(64, 64, 64, 4, 3),
    Tiles(128, 64, 64, 4, 2), Tiles(64, 256, 32, 8, 3),
]  # fmt: skip


def choices(s: Operands) -> Iterator[tuple[str, str, Run]]:
    """Yield the same of the kernel's tiles."""
    for tiles in SPLIT_TILES if s.halves is not None else ():
        for what, transposed in (("y", True), ("dx", False)):

            def run(tiles: Tiles = tiles, transposed: bool = transposed) -> Tensor:
                return by_halves(s, tiles, transposed=transposed)

            yield what, f"{tuple(tiles)}", run
    if s.halves is not None:
        return
    from bayeslora_cli.models.kernels.low_rank.fused_triton import fused

    for tiles in TILES:

        def forward(tiles: Tiles = tiles) -> Tensor:
            return fused(s.x, s.weight.t(), s.down, s.up.t(), s.bias, tiles)[0]

        def backward(tiles: Tiles = tiles) -> Tensor:
            return fused(s.grad, s.weight, s.up.t(), s.down, None, tiles)[0]

        yield "y", f"{tuple(tiles)}", forward
        yield "dx", f"{tuple(tiles)}", backward


def microseconds(calls: list[Run], device: torch.device) -> float:
    """Microseconds per call, of calls with different operands."""
    return 1e3 * replayed(calls * 3 if len(calls) > 1 else calls, device)


def measure(
    n: int, product: Product, device: torch.device, dtype: torch.dtype, *, tune: bool
) -> None:
    """Print the times of one product."""
    of_one = 4 * n * (product.width + product.height) + 6 * product.width * product.height
    count = max(1, min(4, CACHE // of_one + 1))
    sets = [Operands(n, product, device, dtype) for _ in range(count)]
    print(f"\n{n} tokens, {product.name}: {product.width} -> {product.height}, {product.rank}")
    cells: dict[str, list[str]] = {}
    for found in zip(*(ways(s) for s in sets), strict=True):
        what, how = found[0][:2]
        us = microseconds([call for *_, call in found], device)
        cells.setdefault(what, []).append(f"{how} {us:.1f}")
    tuned: dict[str, list[tuple[float, str]]] = {}
    for found in zip(*(choices(s) for s in sets), strict=True) if tune else ():
        what, how = found[0][:2]
        us = microseconds([call for *_, call in found], device)
        tuned.setdefault(what, []).append((us, how))
    for what, texts in cells.items():
        best = [f"{how} {us:.1f}" for us, how in sorted(tuned.get(what, []))]
        print(f"  {what}: " + ", ".join([*texts, *best]), flush=True)


def main() -> None:
    """Print the times of all products of the models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="deberta,smollm2,llama,qwen")
    parser.add_argument("--tokens", help="instead of each model's own numbers")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=tuple(TYPES), default="bf16")
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    for model in args.models.split(","):
        tokens, products = MODELS[model]
        for n in map(int, args.tokens.split(",")) if args.tokens else tokens:
            print(f"\n## {model}")
            for product in products:
                measure(n, product, device, TYPES[args.precision], tune=args.tune)


if __name__ == "__main__":
    main()
