#!/usr/bin/env bash
# transformers 5.24: rows packed into one sequence are kept apart by their position ids only while
# the model makes no key-value cache. It makes one by default, in training too, unless gradient
# checkpointing is on. So checkpointing, which should only save memory, changes the loss of packed
# rows, and the same model that keeps them apart in training mixes them in evaluation.
# One would expect: positions that start anew begin a new row, or do not, whatever the mode is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
)
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.2)  # untrained weights of 0.02 would hide the effect
first, second = torch.randint(64, (1, 9)), torch.randint(64, (1, 7))
packed = torch.cat((first, second), dim=1)
positions = torch.cat((torch.arange(9), torch.arange(7)))[None]
alone = model(second).logits


def second_row(**options):
    """Say by how much the second row's logits change when the first row stands before it."""
    logits = model(packed, position_ids=positions, **options).logits[:, first.shape[1] :]
    return f"{(logits - alone).abs().max().item():.2f}"


print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
for checkpointing in (False, True):
    if checkpointing:
        model.activation_checkpointing_enable()  # gradient checkpointing
    for mode in ("training", "evaluation"):
        model.train(mode == "training")
        print(f"{mode}, gradient checkpointing {checkpointing}: off by {second_row()}")
print("evaluation, use_cache=False: off by", second_row(use_cache=False))
ones = torch.ones_like(packed)
print("the same with a mask of ones: off by", second_row(use_cache=False, attention_mask=ones))
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
seen=$("$folder/venv/bin/python" "$folder/try.py")
python3 --version
printf 'expected: off by 0.00 everywhere, or nowhere\nseen:\n%s\n' "$seen"

wanted="torch 2.13.0, transformers 5.24.0
training, gradient checkpointing False: off by 5.17
evaluation, gradient checkpointing False: off by 5.17
training, gradient checkpointing True: off by 0.00
evaluation, gradient checkpointing True: off by 5.17
evaluation, use_cache=False: off by 0.00
the same with a mask of ones: off by 5.17"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
