#!/usr/bin/env bash
# torch 2.13: a block that is recomputed (`checkpoint(block, x, use_reentrant=False)`) and sets an
# attribute of its module, such as a value kept for later, is left out of what `torch.compile` makes
# and runs uncompiled, with no warning. If the module did not have the attribute before and it is set
# to a flag, nothing of the whole forward pass is compiled. Without `checkpoint` all is compiled.
# TORCH_LOGS=graph_breaks tells of it, and with `fullgraph=True` it is an error.
# `torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True` mends both: the
# attribute is then set once per pass, and not again when the block is recomputed.
# One would expect: what is compiled without `checkpoint` is compiled with it, or a warning says that
# it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Network(nn.Module):
    def __init__(self, sets, recomputes):
        super().__init__()
        self.sets, self.recomputes = sets, recomputes
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def block(self, x):
        if self.sets == "its input":
            self.seen = x
        if self.sets == "a new flag":
            self.called = True
        return torch.sin(self.second(x))

    def forward(self, x):
        x = self.first(x)
        return checkpoint(self.block, x, use_reentrant=False) if self.recomputes else self.block(x)


def operations(graph):
    """Count the linear layers and sines of a graph and of the graphs inside of it."""
    inside = sum(operations(child) for _, child in graph.named_children() if hasattr(child, "graph"))
    names = [getattr(node.target, "__name__", "") for node in graph.graph.nodes]
    return inside + names.count("linear") + names.count("sin")


def compiled(sets, recomputes=True):
    """Say how many of the network's three operations are compiled in three training steps."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(operations(graph))
        return graph.forward

    torch._dynamo.reset()
    network = Network(sets, recomputes)
    run = torch.compile(network, backend=backend)
    for _ in range(3):
        run(torch.randn(4, 8)).sum().backward()
    return f"{sum(graphs)} of 3 operations in {len(graphs)} graph(s)"


config = torch._dynamo.config
for sets in ("nothing", "its input", "a new flag"):
    print(f"sets {sets}: {compiled(sets)}")
    print(f"  without checkpoint: {compiled(sets, recomputes=False)}")
    with config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        print(f"  with the setting: {compiled(sets)}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
python="$folder/venv/bin/python"
seen=$("$python" "$folder/try.py" 2>"$folder/said")
TORCH_LOGS=graph_breaks "$python" "$folder/try.py" >/dev/null 2>"$folder/log"
seen+="
lines of warnings: $(wc -l <"$folder/said")
told by TORCH_LOGS=graph_breaks: $(grep -c "Graph break in user code" "$folder/log")"
python3 --version
"$python" -c 'import torch; print("torch", torch.__version__)'
printf 'expected: 3 of 3 operations in each line, or a warning\nseen:\n%s\n' "$seen"

wanted="sets nothing: 3 of 3 operations in 1 graph(s)
  without checkpoint: 3 of 3 operations in 1 graph(s)
  with the setting: 3 of 3 operations in 1 graph(s)
sets its input: 1 of 3 operations in 1 graph(s)
  without checkpoint: 3 of 3 operations in 1 graph(s)
  with the setting: 3 of 3 operations in 1 graph(s)
sets a new flag: 0 of 3 operations in 0 graph(s)
  without checkpoint: 3 of 3 operations in 1 graph(s)
  with the setting: 3 of 3 operations in 1 graph(s)
lines of warnings: 0
told by TORCH_LOGS=graph_breaks: 2"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
