#!/usr/bin/env bash
# peft 0.21: AdaLoraConfig takes every option of LoraConfig and says nothing of those that AdaLoRA
# does not use: rank-stabilised scaling, ranks and alphas by layer, the start of the factors.
# One would expect: they count, as for LoRA, or are refused, as `use_dora` is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import warnings

import peft
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model


def layer(config):
    """Return an adapted layer's rank, scale and factor A, with one seed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("query", torch.nn.Linear(16, 16))
    query = get_peft_model(model, config).base_model.model.query
    factor = query.lora_A["default"]
    return query.r["default"], query.scaling["default"], getattr(factor, "weight", factor).detach()


def differ(kind, **option):
    """Say whether an option changes the layer that peft makes."""
    common = {"target_modules": ["query"], "lora_alpha": 8}
    if kind is AdaLoraConfig:
        common |= {"init_r": 4, "target_r": 2, "total_step": 100}
    else:
        common["r"] = 4
    plain, changed = layer(kind(**common)), layer(kind(**common, **option))
    return plain[:2] != changed[:2] or not torch.equal(plain[2], changed[2])


warnings.simplefilter("error")  # a warning would be an answer too
print(f"peft {peft.__version__}")
for option in (
    {"use_rslora": True},
    {"rank_pattern": {"query": 2}},
    {"alpha_pattern": {"query": 99}},
    {"init_lora_weights": "gaussian"},
    {"use_dora": True},
):
    try:
        adalora = "changes the layer" if differ(AdaLoraConfig, **option) else "is ignored"
    except ValueError:
        adalora = "is refused"
    lora = "counts" if differ(LoraConfig, **option) or "use_dora" in option else "is ignored"
    print(f"{option}: LoRA {lora}, AdaLoRA {adalora}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
seen=$("$folder/venv/bin/python" "$folder/try.py")
python3 --version
printf 'expected: each option counts or is refused\nseen:\n%s\n' "$seen"

wanted="peft 0.21.2
{'use_rslora': True}: LoRA counts, AdaLoRA is ignored
{'rank_pattern': {'query': 2}}: LoRA counts, AdaLoRA is ignored
{'alpha_pattern': {'query': 99}}: LoRA counts, AdaLoRA is ignored
{'init_lora_weights': 'gaussian'}: LoRA counts, AdaLoRA is ignored
{'use_dora': True}: LoRA counts, AdaLoRA is refused"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
