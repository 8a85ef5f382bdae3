#!/usr/bin/env bash
# Triton 3.9, its interpreter (TRITON_INTERPRET=1): a number in fp32 that e4m3 rounds up to a power of two
# comes out as half of that power: 1.99 as 1. Below 2^-6, where e4m3 has subnormals, it rounds towards 0.
# One would expect: the nearest number that e4m3 holds, as of torch, and of the same kernel compiled.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import torch
import triton
import triton.language as tl

print(f"torch {torch.__version__.split('+')[0]}, triton {triton.__version__}")
NUMBERS = [0.124, 1.9, 1.99, 0.25, 0.011, 0.0019]


@triton.jit
def convert(source, target, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    value = tl.load(source + place, place < 6, 0.0)
    tl.store(target + place, value.to(target.dtype.element_ty), place < 6)


numbers = torch.tensor(NUMBERS)
found = torch.empty(6, dtype=torch.float8_e4m3fn)
convert[(1,)](numbers, found, 8)
print("number:     ", *NUMBERS)
print("interpreter:", *found.float().tolist())
print("torch:      ", *numbers.to(torch.float8_e4m3fn).float().tolist())
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 triton==3.9.0 numpy==2.2.6
seen=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore "$folder/try.py")
python3 --version
printf 'expected: two lines of the same numbers\nseen:\n%s\n' "$seen"

wanted="interpreter: 0.0625 1.875 1.0 0.25 0.009765625 0.0
torch:       0.125 1.875 2.0 0.25 0.01171875 0.001953125"
[[ $seen == *"$wanted" ]] || { echo "this has changed" >&2; exit 1; }
