#!/usr/bin/env bash
# laplace-torch 0.3 with curvlinops-for-pytorch 3.0.1: `hessian_structure="full"`, the default backend, of a
# model on a GPU ends in "Expected all tensors to be on the same device, but found at least two devices,
# cuda:0 and cpu!". `CurvlinopsInterface.full` multiplies its operator by `torch.eye(n)`, which is made on
# the CPU, wherever the model is. One would expect: `torch.eye(n, device=...)` of the parameters' device.
# Without a GPU the script shows with what device the matrix is made.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
from unittest.mock import patch

import torch
from laplace.curvature.curvlinops import CurvlinopsGGN
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Linear(3, 2, device=device)
rows, labels = torch.randn(5, 3, device=device), torch.tensor([0, 1, 0, 1, 1], device=device)
made, eye = [], torch.eye


def noted(*sizes, **options):
    made.append(options.get("device"))
    return eye(*sizes, **options)


try:
    with patch("laplace.curvature.curvlinops.torch.eye", noted):
        _, hessian = CurvlinopsGGN(model, "classification").full(rows, labels, N=5)
    print("the Hessian:", tuple(hessian.shape))
except RuntimeError as error:
    print("fails:", error)
print(f"the model is on {device}; torch.eye is called with device={made[0]}, which is the CPU")
PYTHON

python3 -m venv "$folder/venv"
# without torchvision, which it does not need here and which has to fit the build of torch
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchmetrics opt_einsum einops einconv scipy tqdm
"$folder/venv/bin/pip" install --quiet --no-deps laplace-torch==0.3 curvlinops-for-pytorch==3.0.1 \
    asdfghjkl==0.1a4 backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 linear_operator==0.6.1
seen=$("$folder/venv/bin/python" -W ignore "$folder/try.py")
python3 --version
"$folder/venv/bin/pip" list 2>/dev/null | grep -E '^(torch|laplace-torch|curvlinops-for-pytorch) '
printf 'expected: made on the device of the model\nseen: %s\n' "$seen"
[[ $seen == *"device=None, which is the CPU" ]] || { echo "this has changed" >&2; exit 1; }
