#!/usr/bin/env bash
# transformers 5.24: `gradient_checkpointing_enable({"use_reentrant": False})` has frozen embeddings ask for a
# gradient, which only reentrant checkpoints need. The first block then computes the gradient of its
# input, which nothing uses: with LoRA on the values of a model of one block, recomputing adds 1.38 times
# the operations that it adds after `disable_input_require_grads()`, for the same gradients.
# One would expect: a block is computed a second time, and nothing else changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import peft
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}")
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2,
)
rows = torch.arange(32)[None]


def measured(recomputed, asked=True):
    """Operations of products in a pass and its gradients, and the gradients."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(target_modules=["v_proj"], r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(model, lora).train()
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not asked:
        model.base_model.model.disable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return counter.get_total_flops(), found


usual, truth = measured(False)
costs = []
for asked in (True, False):
    cost, found = measured(True, asked)
    assert all(map(torch.allclose, found, truth))
    costs.append(cost - usual)
print("recomputing, as it is:", costs[0])
print("after disable_input_require_grads():", costs[1])
print(f"{costs[0] / costs[1]:.2f} times")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.2.6 transformers==5.24.0 peft==0.21.2
seen=$("$folder/venv/bin/python" -W ignore "$folder/try.py" 2>/dev/null)
python3 --version
printf 'expected: the same number of operations twice, 1.00 times\nseen:\n%s\n' "$seen"

[[ $seen == *"1.38 times" ]] || { echo "this has changed" >&2; exit 1; }
