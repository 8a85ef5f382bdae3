#!/usr/bin/env bash
# ivon-opt 0.1: the gradient that a step uses is taken when `sampled_params` ends, and a step takes
# the mean over all samples since the last one. Two usual lines of a training loop therefore do
# something else than with torch's optimizers, with no error:
# - `clip_grad_norm_` between `backward` and `step` clips nothing;
# - gradients of micro-batches, each divided by their number as usual, are divided by it again.
# One would expect what torch.optim.SGD shows: the step shrinks with the clipped gradient, and a
# batch cut into four gives the step of the whole batch.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import contextlib
from importlib.metadata import version

import ivon
import torch

inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
targets = inputs.sum(1, keepdim=True)


def distance(kind, micro_batches=1, clip=None):
    """Return how far one step moves the weights; IVON's noise is made too small to matter."""
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1, bias=False)
    if kind == "IVON":  # with these numbers its step is lr times the gradient
        optimizer = ivon.IVON(
            model.parameters(), lr=0.1, ess=1e14, hess_init=1.0, weight_decay=0.0, beta2=1.0
        )
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    for part, wanted in zip(inputs.chunk(micro_batches), targets.chunk(micro_batches)):
        sampled = (
            optimizer.sampled_params(train=True) if kind == "IVON" else contextlib.nullcontext()
        )
        with sampled:
            if kind == "IVON":
                optimizer.zero_grad()  # each sample has its own gradient
            loss = torch.nn.functional.mse_loss(model(part), wanted)
            (loss / micro_batches).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return (model.weight.detach() - before).norm().item()


print(f"torch {torch.__version__.split('+')[0]}, ivon-opt {version('ivon-opt')}")
for kind in ("SGD", "IVON"):
    whole = distance(kind)
    print(
        f"{kind}: a step {whole:.3f}, clipped to a hundredth {distance(kind, clip=whole / 10):.3f},"
        f" in four micro-batches {distance(kind, micro_batches=4):.3f}"
    )
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 ivon-opt==0.1.3
seen=$("$folder/venv/bin/python" "$folder/try.py")
python3 --version
printf 'expected: the same three numbers in both lines\nseen:\n%s\n' "$seen"

wanted="torch 2.13.0, ivon-opt 0.1.3
SGD: a step 0.504, clipped to a hundredth 0.005, in four micro-batches 0.504
IVON: a step 0.504, clipped to a hundredth 0.504, in four micro-batches 0.126"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
