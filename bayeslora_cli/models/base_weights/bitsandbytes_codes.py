"""bitsandbytes' codes of weights: 4 bits in blocks of 64 (NF4), 8 bits by row. Its only door.

Only functions of the library are used. Its `Linear4bit` packs the weights on some CPUs when a model
is evaluated, and passes no gradient from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64
"""Weights that share an absolute maximum."""
SECOND_BLOCK = 256
"""Absolute maxima that share their own."""


class Codes(NamedTuple):
    """A weight in NF4 with double quantization (Dettmers et al., QLoRA, arXiv 2305.14314)."""

    codes: Tensor
    """Two codes of 4 bits per byte, uint8, (elements / 2,)."""
    absmax: Tensor
    """Codes of the blocks' absolute maxima, less their mean: uint8, (elements / 64,)."""
    scale: Tensor
    """Absolute maxima of blocks of those, fp32, (elements / 64 / 256,)."""
    offset: Tensor
    """The mean, fp32, ()."""


@cache
def _functions() -> Any:
    import bitsandbytes.functional

    return bitsandbytes.functional


@cache
def _table(device: torch.device) -> Tensor:
    """Return the 256 values that codes of absolute maxima stand for."""
    found: Tensor = _functions().create_dynamic_map().to(device)
    return found


def to_nf4(weight: Tensor) -> Codes:
    """Quantize a weight of any shape."""
    with _default_stream(weight.device) as here:
        codes, state = _functions().quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        found = Codes(codes.flatten(), state.absmax, state.state2.absmax, state.offset)
    if here is not None:  # the allocator knows only the stream that they were made on
        for tensor in found:
            tensor.record_stream(here)
    return found


@contextmanager
def _default_stream(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """Compute on a GPU's default stream, behind what the present one, which is yielded, has to do.

    bitsandbytes' functions that quantize blocks start their kernels there, whatever the present
    stream is (0.50.2): on another one they read a weight before it is written.
    """
    if device.type != "cuda":
        yield None
        return
    here, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(here)
    with torch.cuda.stream(default):
        yield here
    here.wait_stream(default)


def from_nf4(given: Codes, out: Tensor) -> None:
    """Write the values of codes into a contiguous tensor of fp32, fp16 or bf16."""
    # the operators themselves: the functions around them make a table of values in each call
    absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
        given.absmax, given.scale, _table(out.device), SECOND_BLOCK, torch.float32
    )
    flat = out.view(-1)
    # flat: on a CPU, rows that are no multiple of a block get the absolute maxima of others
    rest = absmax.add_(given.offset), BLOCK, "nf4", list(flat.shape), out.dtype
    if out.is_cuda:
        torch.ops.bitsandbytes.dequantize_4bit.out(given.codes, *rest, out=flat)
    else:
        found = torch.ops.bitsandbytes.dequantize_4bit.default(given.codes, *rest)
        flat.copy_(found.view(-1))


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight (out, in) by row, from fp16, as bitsandbytes' own layers do.

    Returns:
        Codes (out, in), int8, and the values of a code of 1 (out,), fp32.
    """
    codes, absmax, _ = _functions().int8_vectorwise_quant(weight.to(torch.float16))
    return codes, absmax.float() / 127
