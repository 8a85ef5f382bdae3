#!/usr/bin/env bash
# bitsandbytes 0.50, on a CPU with avx512: dequantize_4bit gives wrong values for a matrix whose
# rows are no multiple of the block of 64 weights, such as (32, 48): each row begins with a block of
# its own, where the quantizer has counted blocks over the whole matrix. Nothing fails: a model
# 48 wide is a fifth off instead of a tenth (the right values are those of the same codes as one
# row). Linear4bit uses this function.
# One would expect: the values that the codes stand for, whatever the shape.
set -euo pipefail

if ! grep -q avx512f /proc/cpuinfo; then
    echo "this CPU has no avx512; another kernel is used here" >&2
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
for shape in ((32, 64), (32, 48), (128, 16)):
    weight = torch.randn(shape)
    codes, state = F.quantize_4bit(weight, quant_type="nf4")
    found = F.dequantize_4bit(codes, state)
    state.shape = torch.Size([weight.numel()])
    flat = F.dequantize_4bit(codes, state).view(shape)
    errors = [float((x - weight).norm() / weight.norm()) for x in (found, flat)]
    print(f"{shape}: relative error {errors[0]:.3f}, of the same codes as one row {errors[1]:.3f}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
seen=$("$folder/venv/bin/python" "$folder/try.py" 2>/dev/null)
python3 --version
printf 'expected: twice the same error for each shape\nseen:\n%s\n' "$seen"

wanted="torch 2.13.0, bitsandbytes 0.50.2
(32, 64): relative error 0.092, of the same codes as one row 0.092
(32, 48): relative error 0.195, of the same codes as one row 0.091
(128, 16): relative error 0.193, of the same codes as one row 0.092"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
