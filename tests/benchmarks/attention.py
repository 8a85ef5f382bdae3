"""One DeBERTa attention layer: this engine's against the fused kernels that there are, on one GPU.

    pip install disentangled-flash flashdeberta     # or without their columns
    python tests/benchmarks/attention.py [--lengths 64,128,256] [--precision fp32,bf16]

First, with PEFT's LoRA on the three projections and no dropout, how far from transformers' layer in
float64 the result is, its gradient to the input and to the adapters, each relative to its norm.
Then the time of a layer without adapters, forward and backward to its input, ten in a CUDA graph,
medians of the replays; of padded rows, half to all of the length, and of the same rows packed.
DeBERTaV3-base's shapes, random weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from gpu_step import ARCHITECTURE, comma_list
from measure import describe, environment, replayed
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from bayeslora_cli.models.encoders.relative_attention import RelativeAttention

CALLS = 10  # in a graph
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TARGETS = ["query_proj", "key_proj", "value_proj"]

Run = Callable[[Tensor], Tensor]


class Batch:
    """One layer's inputs, in float64, and the gradient of what it returns."""

    def __init__(self, rows: int, length: int) -> None:
        hidden = ARCHITECTURE["hidden_size"]
        self.relative = torch.randn(512, hidden, dtype=torch.double, device="cuda")
        lengths = torch.randint(length // 2, length + 1, (rows, 1), device="cuda")
        lengths[0] = length
        self.mask = torch.arange(length, device="cuda") < lengths
        self.pairs = self.mask[:, None, None, :] & self.mask[:, None, :, None]
        self.x = torch.randn(rows, length, hidden, dtype=torch.double, device="cuda")
        self.gradient = torch.randn_like(self.x) * self.mask[..., None]
        offsets = torch.cat((lengths.new_zeros(1), lengths[:, 0].cumsum(0))).int()
        self.rows = offsets, torch.empty(0, length)
        """Where the rows begin without padding, as `data.packing.pack` says it on a GPU."""

    def through(self, layer: Callable[..., Any], mask: Any, dtype: torch.dtype) -> Run:
        """The layer as a function of its input; `mask` in the form that it knows."""
        relative = self.relative.to(dtype)
        return lambda x: layer(x, mask, rel_embeddings=relative)[0].view_as(x)

    def packed(self, x: Tensor) -> Tensor:
        """The tokens of padded rows one after the other: (rows, L, n) -> (1, t, n)."""
        return x[self.mask][None]

    def padded(self, x: Tensor) -> Tensor:
        """The inverse of `packed`; zeros behind the rows."""
        out = x.new_zeros(*self.mask.shape, x.shape[2])
        out[self.mask] = x[0]
        return out


def layers() -> tuple[nn.Module, dict[str, tuple[nn.Module, str]]]:
    """transformers' layer, and the others with their masks' names; all of one set of weights."""
    config = DebertaV2Config(**ARCHITECTURE)
    original = DisentangledSelfAttention(config).cuda().requires_grad_(requires_grad=False)

    def like(cls: type[nn.Module]) -> nn.Module:
        made = cls(config)
        for name, child in original.named_children():
            setattr(made, name, deepcopy(child))
        return made

    found: dict[str, tuple[nn.Module, str]] = {
        "ours": (RelativeAttention(deepcopy(original), 512).cuda(), "pairs"),
        "ours, packed": (RelativeAttention(deepcopy(original), 512).cuda(), "rows"),
    }
    if find_spec("disentangled_flash"):
        from disentangled_flash.training import TritonTrainingDisentangledSelfAttention

        class Calling(TritonTrainingDisentangledSelfAttention):  # type: ignore[misc]
            """Calls its projections, instead of reading their weights."""

            def _project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                x = hidden_states
                return self.query_proj(x), self.key_proj(x), self.value_proj(x)

        found["disentangled-flash"] = (like(TritonTrainingDisentangledSelfAttention), "mask")
        found["the same, calling its projections"] = (like(Calling), "mask")
    if find_spec("flashdeberta"):
        from flashdeberta import FlashDisentangledSelfAttention

        found["flashdeberta"] = (like(FlashDisentangledSelfAttention), "mask")
    return original, found


def adapt(layer: nn.Module) -> nn.Module:
    """A copy with LoRA, the same in every layer and no zero in it, on the projections."""
    config = LoraConfig(r=8, lora_alpha=32, target_modules=TARGETS, init_lora_weights=False)
    made: nn.Module = inject_adapter_in_model(config, deepcopy(layer)).eval()
    draws = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for name in TARGETS:
            for parameter in made.get_submodule(name).parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1, generator=draws)
    return made


def outcome(layer: nn.Module, mask: str, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    """The result, the gradient to the input, and those to the adapters in one piece."""
    run = batch.through(layer, getattr(batch, mask), dtype)
    if mask == "rows":
        attend = run
        run = lambda x: batch.padded(attend(batch.packed(x)))  # noqa: E731
    x = batch.x.to(dtype).requires_grad_()
    adapters = [p for p in layer.parameters() if p.requires_grad]
    out = run(x)
    grads = torch.autograd.grad(
        out, [x, *adapters], batch.gradient.to(dtype), allow_unused=True, materialize_grads=True
    )
    return [
        out.detach() * batch.mask[..., None],
        grads[0],
        torch.cat([grad.flatten() for grad in grads[1:]]),
    ]


def both_ways(
    run: Run, batch: Batch, dtype: torch.dtype, repeats: int, *, packed: bool = False
) -> float:
    """Milliseconds forward and backward."""
    x, gradient = batch.x.to(dtype), batch.gradient.to(dtype)
    if packed:
        x, gradient = batch.packed(x), batch.packed(gradient)
    x.requires_grad_()

    def call() -> None:
        torch.autograd.grad(run(x), x, gradient)

    return replayed([call] * CALLS, x.device, repeats=repeats)


def compare(rows: int, lengths: list[int], precisions: list[str]) -> None:
    """Print a line a precision, length and implementation: its distances from float64."""
    original, others = layers()
    twin = adapt(original).double()
    sides = {"transformers": (original, "pairs"), **others}
    print("| with LoRA, no dropout | | result | gradient to the input | to the adapters |")
    print("|---|---|---|---|---|")
    for precision in precisions:
        dtype = TYPES[precision]
        for length in lengths:
            batch = Batch(rows, length)
            exact = outcome(twin, "pairs", batch, torch.double)
            for name, (layer, mask) in sides.items():
                found = outcome(adapt(layer).to(dtype), mask, batch, dtype)
                cells = [f"{precision}, {length} tokens", name]
                for a, b in zip(found, exact, strict=True):
                    cells.append(f"{float((a.double() - b).norm() / b.norm()):.1e}")
                print(f"| {' | '.join(cells)} |", flush=True)


def time_all(rows: int, lengths: list[int], precisions: list[str], repeats: int) -> None:
    """Print a line a precision and length; flashdeberta knows neither dropout nor, here, padding.

    It looks at the mask on the host, which no graph can hold.
    """
    _, others = layers()
    ours, theirs, flash = (
        others.get(name, (None,))[0] for name in ("ours", "disentangled-flash", "flashdeberta")
    )
    assert ours is not None
    print("| ms | ours, packed, compiled | not compiled | ours, padded, compiled |", end="")
    print(" not compiled | disentangled-flash | no dropout: ours, packed, compiled |", end="")
    print(" padded | flashdeberta, nothing padded |\n|---|---|---|---|---|---|---|---|---|")
    for precision in precisions:
        dtype = TYPES[precision]
        for length in lengths:
            batch = Batch(rows, length)
            torch.compiler.reset()  # after eight shapes the compiler gives up
            compiled = torch.compile(ours.to(dtype), dynamic=False)
            cells = [f"{precision}, {length} tokens"]
            for layer, module, mask, train in (
                (compiled, ours, batch.rows, True),
                (ours, ours, batch.rows, True),
                (compiled, ours, batch.pairs, True),
                (ours, ours, batch.pairs, True),
                (theirs, theirs, batch.mask, True),
                (compiled, ours, batch.rows, False),
                (compiled, ours, batch.pairs, False),
                (flash, flash, None, False),
            ):
                if module is None:
                    cells.append("–")
                    continue
                module.to(dtype).train(mode=train)
                run = batch.through(layer, mask, dtype)
                packed = mask is batch.rows
                cells.append(f"{both_ways(run, batch, dtype, repeats, packed=packed):.3f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=comma_list(None), default=["64", "128", "256"])
    parser.add_argument("--precision", type=comma_list(tuple(TYPES)), default=["bf16"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths]

    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are not captured on the default stream
    print(f"{describe(environment(torch.device('cuda')))}\n`{' '.join(['python', *sys.argv])}`\n")
    torch.manual_seed(0)
    compare(options.rows, lengths, options.precision)
    print()
    time_all(options.rows, lengths, options.precision, options.repeats)


if __name__ == "__main__":
    main()
