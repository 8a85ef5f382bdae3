#!/usr/bin/env bash
# bitsandbytes 0.50, on a CPU with avx512: dequantize_4bit gives wrong values for a matrix whose
# rows are no multiple of the block of 64 weights, such as (32, 48): each row begins with a block of
# its own, where the quantizer has counted blocks over the whole matrix. Nothing fails: a model
# 48 wide is a fifth off instead of a tenth (the right values are those of the same codes as one
# row). Linear4bit uses this function.
# One would expect: the values that the codes stand for, whatever the shape.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

print(f"torch {torch.__version__.split('+')[0]}, bitsandbytes {bnb.__version__}")
torch.manual_seed(0)
wrong = []
for shape in ((32, 64), (32, 48), (128, 16)):
    weight = torch.randn(shape)
    codes, state = F.quantize_4bit(weight, quant_type="nf4")
    found = F.dequantize_4bit(codes, state)
    state.shape = torch.Size([weight.numel()])
    flat = F.dequantize_4bit(codes, state).view(shape)
    errors = [float((x - weight).norm() / weight.norm()) for x in (found, flat)]
    print(f"{shape}: relative error {errors[0]:.3f}, of the same codes as one row {errors[1]:.3f}")
    wrong.append(errors[0] > 1.3 * errors[1])
raise SystemExit(0 if wrong == [False, True, True] else 1)
PYTHON
python "$folder/try.py" 2>/dev/null
