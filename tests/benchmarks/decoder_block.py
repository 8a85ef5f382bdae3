"""Where the time of a decoder's block goes: its products, attention, and what lies between.

    python tests/benchmarks/decoder_block.py --size llama [--tune] [--kernels 25]
    python tests/benchmarks/decoder_block.py --size tiny --device cpu      # does it run at all?

A few blocks with AdaLoRA's adapters (rank 12) on all seven projections, random weights, bf16,
packed rows, forward and backward to the input and the adapters, in a CUDA graph. Times are per
block, medians of the replays; memory is what one block keeps for its backward pass. "products
alone" is the time of the seven frozen products, forward and to their input, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from decoder_sizes import SIZES, Size
from measure import describe, environment, replayed, synchronize
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.models.adapters import decoder_blocks
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.decoder_blocks import join_blocks
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.adapters.published_factors import PublishedFactors

RANK = 12
Run = Callable[[], None]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    *, scaling: float, offsets: Tensor, longest: int, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Packed rows: (1, heads, t, d) -> (1, t, heads, d)."""
    if not query.is_cuda:
        rows = query.shape[2] // longest
        q, k, v = (x.unflatten(2, (rows, -1))[0].transpose(0, 1) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1)[None], None
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    more: dict[str, Any] = {}
    if "enable_gqa" in varlen_attn.__kwdefaults__:
        more["enable_gqa"] = True
    out = varlen_attn(
        q, k, v, offsets, offsets, longest, longest, scale=scaling, window_size=(-1, 0), **more
    )
    assert isinstance(out, Tensor)
    return out[None], None


class Blocks:
    """Some blocks with adapters, their input and a gradient of their output."""

    def __init__(
        self, size: Size, count: int, device: torch.device, *, joined: bool, gated: bool
    ) -> None:
        ALL_ATTENTION_FUNCTIONS.register("benchmark", attention)
        torch.manual_seed(0)
        config = size.config()
        config.num_hidden_layers, config.vocab_size = count, 128
        config._attn_implementation = "benchmark"
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            self.module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).model
            self.module.requires_grad_(False).train()
            layers = {}
            for name, child in list(self.module.named_modules()):
                if isinstance(child, nn.Linear):
                    layer = LowRankLinear(DenseLinear(child), RANK, 2.0, singular_values=True)
                    parent, _, last = name.rpartition(".")
                    setattr(self.module.get_submodule(parent), last, layer)
                    layers[name] = layer
            for layer in layers.values():
                for parameter in (layer.lora_A, layer.lora_B, layer.lora_E):
                    assert parameter is not None
                    parameter.data.normal_(std=0.02)
            tokens = size.rows * size.tokens
            self.x = torch.randn(1, tokens, config.hidden_size, dtype=dtype).requires_grad_()
            self.gradient = torch.randn_like(self.x)
            self.positions = torch.arange(size.tokens).repeat(size.rows)[None]
            self.offsets = size.tokens * torch.arange(size.rows + 1, dtype=torch.int32)
        original = decoder_blocks._wide
        try:
            if not gated:
                decoder_blocks._wide = lambda _: None  # type: ignore[assignment]
            joints = join_blocks(self.module) if joined else []
        finally:
            decoder_blocks._wide = original
        matrices = [Matrix(name=n, a=x.lora_A, b=x.lora_B, e=x.lora_E) for n, x in layers.items()]
        self.bank = AdapterBank(matrices, [], posterior=False, device=device)
        self.bank.factors = PublishedFactors(self.bank, list(layers.values()), dtype, joints)
        self.longest, self.count, self.kept = size.tokens, count, 0
        self.rotary = self.module.rotary_emb(self.x, position_ids=self.positions)

    def __call__(self) -> None:
        """Forward and backward."""
        assert self.bank.factors is not None
        self.bank.factors.zero()
        self.x.grad = None
        before = allocated(self.x.device)
        x = self.x
        for block in self.module.layers:
            x = block(
                x, attention_mask=None, position_ids=self.positions,
                position_embeddings=self.rotary, offsets=self.offsets, longest=self.longest,
            )  # fmt: skip
        self.kept = (allocated(self.x.device) - before) // self.count
        x.backward(self.gradient)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def products_alone(size: Size, device: torch.device) -> float:
    """Milliseconds of one block's frozen products, forward and to the input."""
    o, tokens = size.options, size.rows * size.tokens
    head = o.get("head_dim", o["hidden_size"] // o["num_attention_heads"])
    hidden, inner, queries = (
        o["hidden_size"],
        o["intermediate_size"],
        o["num_attention_heads"] * head,
    )
    shapes = [
        (queries + 2 * o["num_key_value_heads"] * head, hidden), (hidden, queries),
        (2 * inner, hidden), (hidden, inner),
    ]  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pairs = [
        (torch.randn(tokens, i, device=device, dtype=dtype),
         torch.randn(o, i, device=device, dtype=dtype)) for o, i in shapes
    ]  # fmt: skip

    def call() -> None:
        for x, w in pairs:
            (x @ w.t()) @ w

    return replayed([call], device)


def kernels_of(call: Run, count: int, most: int) -> str:
    """The dearest kernels of a call, in microseconds per block, and how often each runs.

    The first line has their sum, their number, and the time from the first one to the last.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    us: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    ends: list[float] = []
    for event in seen.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            us[event.name] += event.time_range.elapsed_us()
            calls[event.name] += 1
            ends += (event.time_range.start, event.time_range.end)
    lines = [
        f"  {value / count:8.1f} us  {calls[name] / count:5.1f}  {name[:110]}"
        for name, value in us.most_common(most)
    ]
    total = sum(us.values()) / count
    span = (max(ends) - min(ends)) / count
    head = f"  {total:8.1f} us, {sum(calls.values()) / count:.1f} kernels, {span:.1f} us in all"
    return "\n".join([head, *lines])


def gaps_of(call: Run, least: float = 50.0) -> str:
    """When the GPU waited during a call, and what the host launched when, in microseconds.

    Args:
        least: shorter gaps are only added up.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    kernels, lines = [], []
    for event in seen.events():
        place = event.time_range.start, event.time_range.end
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels.append((*place, event.name))
        elif event.name.startswith(("cudaGraphLaunch", "cudaStreamSync", "cudaDeviceSync")):
            lines.append((place[0], f"host: {event.name}, {place[1] - place[0]:.0f}"))
    kernels.sort()
    begin, end, last, busy, short = kernels[0][0], kernels[0][0], "", 0.0, 0.0
    for start, stop, name in kernels:
        gap = start - end
        if gap >= least:
            lines.append((end, f"nothing runs for {gap:.0f}: {last[:50]} .. {name[:50]}"))
        elif gap > 0:
            short += gap
        busy += max(0.0, stop - max(start, end))
        if stop > end:
            end, last = stop, name
    head = f"  {end - begin:.0f} us in all, {busy:.0f} busy, {short:.0f} in short gaps"
    return "\n".join([head, *(f"  {at - begin:9.0f}  {what}" for at, what in sorted(lines))])


def tune(size: Size, device: torch.device) -> None:
    """Times of the gated MLP's kernels by their tiles, and of products that could replace them."""
    from bayeslora_cli.models.kernels.decoder import gated_mlp_triton as kernels

    n, inner = size.rows * size.tokens, size.options["intermediate_size"]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    kept, h, up = drawn(n, 2 * inner), drawn(n, 24), drawn(24, 2 * inner).t()
    down, to_product, to_h_2 = drawn(16, inner), drawn(n, inner), drawn(n, 16)
    floor = 1e3 * 2 * n * inner / 4.3e12
    print(f"the gated MLP's kernels; at 4.3 TB/s: {3 * floor:.3f} ms, {5 * floor:.3f} ms back")
    others: dict[str, Run] = {
        "[g, u] += h up'": lambda: kept.addmm_(h, up.t()),  # type: ignore[dict-item, return-value]
        "product down'": lambda: to_product @ down.t(),  # type: ignore[dict-item, return-value]
        "h' [dg, du]": lambda: h.t() @ kept,  # type: ignore[dict-item, return-value]
        "[dg, du] up": lambda: kept @ up,  # type: ignore[dict-item, return-value]
    }
    for name, other in others.items():
        print(f"  {name}: {replayed([other], device):.3f} ms")
    kept.normal_()
    for tiles in TILES:
        kernels.AHEAD = kernels.BACK = kernels.Tiles(*tiles)
        cells = []
        for call in (
            lambda: kernels.forward(kept, h, up, down, 12),
            lambda: kernels.backward(to_product, to_h_2, kept, h, up, down, 12),
        ):
            try:
                cells.append(f"{replayed([call], device):.3f}")  # type: ignore[arg-type]
            except Exception as error:
                cells.append(type(error).__name__)
        print(f"  rows, columns, warps, stages, registers {tiles}: {', '.join(cells)}", flush=True)


TILES: list[tuple[int, int, int, int, int | None]] = [
    (64, 32, 4, 1, None), (64, 32, 4, 2, None), (64, 32, 4, 1, 160), (64, 32, 4, 1, 128),
    (64, 32, 4, 2, 128), (64, 64, 4, 1, None), (64, 64, 4, 2, None), (128, 32, 8, 1, None),
    (128, 32, 8, 1, 128), (128, 64, 8, 1, None), (64, 16, 4, 1, 128), (32, 32, 2, 1, 128),
    (32, 64, 2, 1, 160), (64, 128, 8, 1, None), (128, 64, 8, 2, None), (16, 256, 4, 1, None),
]  # fmt: skip


def attentions(size: Size, device: torch.device) -> None:
    """Times of the kernels of attention on packed rows."""
    o = size.options
    heads, few = o["num_attention_heads"], o["num_key_value_heads"]
    width = o.get("head_dim", o["hidden_size"] // heads)
    n = size.rows * size.tokens
    q, gradient = (torch.randn(n, heads, width, device=device, dtype=torch.bfloat16) for _ in "qg")
    k, v = (torch.randn(n, few, width, device=device, dtype=torch.bfloat16) for _ in "kv")
    for x in (q, k, v):
        x.requires_grad_()
    offsets = size.tokens * torch.arange(size.rows + 1, dtype=torch.int32, device=device)

    def by_rows(x: Tensor) -> Tensor:
        return x.unflatten(0, (size.rows, -1)).transpose(1, 2)

    def packed() -> Tensor:
        found = attention(
            nn.Module(), *(x.transpose(0, 1)[None] for x in (q, k, v)), None,
            scaling=width**-0.5, offsets=offsets, longest=size.tokens,
        )[0]  # fmt: skip
        return found[0]

    def dense(backend: Any, *, wide: bool) -> Callable[[], Tensor]:
        def call() -> Tensor:
            keys, values = (x.repeat_interleave(heads // few, 1) if wide else x for x in (k, v))
            with torch.nn.attention.sdpa_kernel(backend):
                out = nn.functional.scaled_dot_product_attention(
                    by_rows(q),
                    by_rows(keys),
                    by_rows(values),
                    is_causal=True,
                    enable_gqa=not wide,
                )
            return out.transpose(1, 2).flatten(0, 1)

        return call

    def cudnn_packed() -> Tensor:
        keys, values = (x.repeat_interleave(heads // few, 1) for x in (k, v))
        return CudnnPacked.apply(q, keys, values, offsets, size.tokens)

    kinds = torch.nn.attention.SDPBackend
    exact = None
    for name, call in {
        "varlen_attn": packed,
        "dense rows, flash": dense(kinds.FLASH_ATTENTION, wide=False),
        "dense rows, cuDNN, grouped": dense(kinds.CUDNN_ATTENTION, wide=False),
        "dense rows, cuDNN, keys repeated": dense(kinds.CUDNN_ATTENTION, wide=True),
        "cuDNN by offsets, keys repeated": cudnn_packed,
    }.items():

        def both(call: Callable[[], Tensor] = call) -> None:
            torch.autograd.grad(call(), (q, k, v), gradient)

        try:
            found = [call(), *torch.autograd.grad(call(), (q, k, v), gradient)]
            exact = exact or found
            far = max(
                float((a - b).detach().float().norm() / b.detach().float().norm())
                for a, b in zip(found, exact, strict=True)
            )
            print(
                f"  {name}: {1e3 * replayed([both], device):.0f} us, off by {far:.1e}", flush=True
            )
        except Exception as error:
            print(f"  {name}: {type(error).__name__} {str(error)[:120]}")


class CudnnPacked(torch.autograd.Function):
    """cuDNN's attention by row offsets."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
        found = torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, offsets, offsets, longest, longest, True, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, found[0], found[1], offsets, found[6], found[7])
        ctx.longest = longest
        out: Tensor = found[0]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse, offsets, seed, offset = ctx.saved_tensors
        found = torch.ops.aten._cudnn_attention_backward(
            gradient.contiguous(), q, k, v, out, lse, seed, offset, None, offsets, offsets,
            ctx.longest, ctx.longest, 0.0, True,
        )  # fmt: skip
        return (*found, None, None)


def main() -> None:
    """Print the times of the variants, the kernels of the last, and what else is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="llama")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kernels", type=int, default=30, help="how many kernels to list")
    parser.add_argument("--tune", action="store_true", help="time the gated MLP's tiles as well")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, size = torch.device(options.device), SIZES[options.size]
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    print(f"{describe(environment(device))}\n`{' '.join(['python', *sys.argv])}`\n")
    print(f"{size.name}, {size.rows} x {size.tokens} tokens, times per block")
    print(f"  products alone: {products_alone(size, device):.3f} ms")
    for name, joined, gated, compiled in (
        ("separate", False, False, False),
        ("joint", True, False, False),
        ("joint, gated MLP", True, True, False),
        ("separate, compiled", False, False, True),
        ("joint, compiled", True, False, True),
        ("joint, gated MLP, compiled", True, True, True),
    ):
        blocks = Blocks(size, options.layers, device, joined=joined, gated=gated)
        start = time.perf_counter()
        if compiled and device.type == "cuda":
            torch.compiler.reset()
            compile_blocks(blocks.module, dynamic=None)
        blocks()
        synchronize(device)
        first = time.perf_counter() - start
        ms = replayed([blocks], device) / options.layers
        print(
            f"  {name}: {ms:.3f} ms, keeps {blocks.kept / 2**20:.0f} MiB, first {first:.0f} s",
            flush=True,
        )
        if device.type == "cuda" and name in ("joint, gated MLP", "joint, gated MLP, compiled"):
            print(kernels_of(blocks, options.layers, options.kernels))
        del blocks
    if options.tune:
        tune(size, device)
    if device.type == "cuda":  # last: a capture that fails may take the process with it
        attentions(size, device)


if __name__ == "__main__":
    main()
