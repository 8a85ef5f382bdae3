"""Times and errors of an output layer's products and slopes, in bf16 and with fp8 numbers.

    python tests/benchmarks/fp8_output.py --size llama             # on one H200

Microseconds per 1,024 tokens, in a CUDA graph. Errors are those of the gradient of the hidden
states, relative to its norm in fp32, of the layer as it is and with logits as spread as a trained
model's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from decoder_block import replayed
from decoder_sizes import SIZES
from measure import describe, environment
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.models.kernels.decoder import fp8_output
from bayeslora_cli.models.kernels.decoder.fp8_output import Fp8Output, quantized_output
from bayeslora_cli.models.kernels.decoder.token_log_likelihood import _at, token_log_likelihood
from bayeslora_cli.models.kernels.frozen.fp8_rows import quantize_rows, scaled_product, transposed


def parts(
    hidden: Tensor, weight: Tensor, targets: Tensor, output: Fp8Output
) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    logits = F.linear(hidden, weight)
    kept = logits.clone()
    _, codes, step, _ = fp8_output._slopes(logits, targets, output, 1.0, None)
    rows = quantize_rows(hidden)
    back, ones = transposed(output.codes)
    found: dict[str, Callable[[], Any]] = {
        "logits": lambda: F.linear(hidden, weight),
        "logits, fp8": lambda: scaled_product(*rows, output.codes, output.scale, hidden.dtype),
        "slopes": lambda: _at(kept, targets, 1.0, None, True),
        "slopes, fp8": lambda: fp8_output._slopes(logits, targets, output, 1.0, None),
        "back": lambda: logits @ weight,
    }
    for fast in (False, True):
        found[f"back, fp8{', fast sums' if fast else ''}"] = lambda fast=fast: scaled_product(
            codes, step, back, ones, hidden.dtype, fast=fast
        )
    return found | {"transpose": lambda: transposed(output.codes)}


def gradient(hidden: Tensor, weight: Tensor, targets: Tensor, output: Fp8Output | None) -> Tensor:
    """Return that of the log-likelihoods' sum, (n, d) fp32."""
    given = hidden.clone().requires_grad_()
    token_log_likelihood(given, weight, None, targets, output=output).sum().backward()
    assert given.grad is not None
    return given.grad.float()


def main() -> None:
    """Print times and errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="llama")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, size = torch.device(options.device), SIZES[options.size]
    if device.type == "cuda":  # graphs are not captured on the default stream
        torch.cuda.set_stream(torch.cuda.Stream())
    print(f"{describe(environment(device))}\n`{' '.join(['python', *sys.argv])}`\n")
    torch.manual_seed(0)
    vocabulary, width = size.options["vocab_size"] // 16 * 16, size.options["hidden_size"]
    weight = torch.randn(vocabulary, width, device=device) * 0.02
    hidden = torch.randn(1024, width, device=device)
    targets = torch.randint(vocabulary, (1024,), device=device)
    low, of_layer = hidden.bfloat16(), weight.bfloat16()
    output = quantized_output(of_layer)
    assert output is not None
    for what, call in parts(low, of_layer, targets, output).items():
        print(f"  {what}: {1e3 * replayed(call, device):.0f}", flush=True)
    for factor in (1.0, 4.0):
        exact = gradient(factor * hidden, weight, targets, None)
        for what, given in (
            ("bf16", None),
            ("slopes in fp8", output),
            ("logits too", output._replace(logits=True)),
        ):
            found = gradient((factor * hidden).bfloat16(), of_layer, targets, given)
            error = float((found - exact).norm() / exact.norm())
            print(f"  logits of {factor * 0.02 * width**0.5:.1f}, {what}: error {error:.4f}")


if __name__ == "__main__":
    main()
