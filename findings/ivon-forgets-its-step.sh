#!/usr/bin/env bash
# ivon-opt 0.1: `state_dict` holds the momentum and the Hessian but not the number of steps, which
# the correction of the momentum's start needs. A run that goes on from a saved state divides its
# full momentum by 1 - 0.9 instead of 1: its first step is ten times too long.
# One would expect what torch.optim.AdamW shows: the step after loading is the step without.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import copy
from importlib.metadata import version

import ivon
import torch

inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
targets = inputs.sum(1, keepdim=True)


def optimizer_of(kind, model):
    if kind == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=1e-4)
    return ivon.IVON(  # samples and Hessian that hardly differ from the mean, to compare steps
        model.parameters(), lr=1e-4, ess=1e14, hess_init=1.0, weight_decay=0.0, beta2=1.0
    )


def step(model, optimizer):
    """Make one step and return how far the weights moved."""
    before = model.weight.detach().clone()
    if isinstance(optimizer, ivon.IVON):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
    else:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    return (model.weight.detach() - before).norm().item()


print(f"torch {torch.__version__.split('+')[0]}, ivon-opt {version('ivon-opt')}")
for kind in ("AdamW", "IVON"):
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = optimizer_of(kind, model)
    for _ in range(100):
        step(model, optimizer)
    other = copy.deepcopy(model)
    loaded = optimizer_of(kind, other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ratio = step(other, loaded) / step(model, optimizer)
    print(f"{kind}: the step after loading is {ratio:.1f} times the step without")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 ivon-opt==0.1.3
seen=$("$folder/venv/bin/python" "$folder/try.py")
python3 --version
printf 'expected: 1.0 times in both lines\nseen:\n%s\n' "$seen"

wanted="torch 2.13.0, ivon-opt 0.1.3
AdamW: the step after loading is 1.0 times the step without
IVON: the step after loading is 10.0 times the step without"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
