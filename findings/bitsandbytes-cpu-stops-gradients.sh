#!/usr/bin/env bash
# bitsandbytes 0.50, on a CPU that has avx512_bf16: after one forward pass in evaluation mode a
# 4-bit layer passes no gradient to its input any more, in training mode neither. Nothing fails;
# torch warns once that `gemv_4bit` has no backward pass. (The layer packs its weight for that
# product and keeps it packed.) Whoever evaluates during training goes on without these gradients.
# One would expect: evaluation changes nothing, as with 8-bit layers.
set -euo pipefail

if ! grep -q avx512_bf16 /proc/cpuinfo; then
    echo "this CPU has no avx512_bf16; the layer is not packed here" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import bitsandbytes as bnb
import torch


def layer(bits):
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    if bits == 4:
        made = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return made.to("cpu")


def gradient(made):
    """Return the gradient's norm at the input of a layer in training mode."""
    made.train()
    inputs = torch.ones(4, 64, dtype=torch.bfloat16, requires_grad=True)
    made(inputs).float().sum().backward()
    return "no gradient" if inputs.grad is None else f"gradient {inputs.grad.float().norm():.0f}"


print(f"torch {torch.__version__.split('+')[0]}, bitsandbytes {bnb.__version__}")
for bits in (8, 4):
    made = layer(bits)
    before = gradient(made)
    made.eval()
    with torch.no_grad():
        made(torch.ones(4, 64, dtype=torch.bfloat16))
    print(f"{bits} bits: {before}; after an evaluation: {gradient(made)}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
seen=$("$folder/venv/bin/python" "$folder/try.py")
python3 --version
printf 'expected: the same gradient before and after an evaluation\nseen:\n%s\n' "$seen"

wanted="torch 2.13.0, bitsandbytes 0.50.2
8 bits: gradient 130; after an evaluation: gradient 130
4 bits: gradient 131; after an evaluation: no gradient"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
