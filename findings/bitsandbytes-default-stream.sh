#!/usr/bin/env bash
# bitsandbytes 0.50 on a GPU: quantize_4bit and quantize_blockwise start their kernels on the default
# stream, whatever torch's present stream is (cquantize_blockwise_* take no stream, unlike the kernels that
# dequantize). On another stream, which waits for the default one as little as that one for it, they
# read a weight before it is written, and what is computed from the codes reads these too early.
# Nothing fails: the codes are those of what was in memory before.
# One would expect: the codes of the weight, on whichever stream it was written.
set -euo pipefail

if ! command -v nvidia-smi >/dev/null; then
    echo "this machine has no GPU; nothing to see here" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

print(f"torch {torch.__version__.split('+')[0]}, bitsandbytes {bnb.__version__}")
torch.manual_seed(0)
weight = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)


def error(written: torch.cuda.Stream) -> float:
    """Of a weight that is written late, on a stream, and then quantized there."""
    torch.cuda.synchronize()
    with torch.cuda.stream(written):
        late = torch.zeros_like(weight)
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        late.copy_(weight)
        codes, state = F.quantize_4bit(late, quant_type="nf4")
    torch.cuda.synchronize()
    found = F.dequantize_4bit(codes, state)
    return float((found - weight).float().norm() / weight.float().norm())


error(torch.cuda.default_stream())
print(f"default stream: relative error {error(torch.cuda.default_stream()):.2f}")
print(f"another stream: relative error {error(torch.cuda.Stream()):.2f}")
PYTHON

if [ -n "${PYTHON:-}" ]; then  # one that has torch and bitsandbytes, where nothing can be installed
    python=$PYTHON
else
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy bitsandbytes==0.50.2
    python=$folder/venv/bin/python
fi
seen=$("$python" -W ignore "$folder/try.py")
"$python" --version
printf 'expected: twice an error of 0.09\nseen:\n%s\n' "$seen"
[[ $seen == *"default stream: relative error 0.09"* && $seen != *"another stream: relative error 0.09"* ]] ||
    { echo "this has changed" >&2; exit 1; }
