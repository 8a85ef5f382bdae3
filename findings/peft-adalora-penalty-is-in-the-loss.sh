#!/usr/bin/env bash
# peft 0.21: an AdaLoRA model adds its orthogonality penalty to every loss it returns.
# In evaluation: the loss of an adapter that changes nothing yet is 5.87 where the model's own is
# 4.16, so the perplexity looks 5.5 times as high.
# In transformers' Trainer: a step of several micro-batches adds the penalty once for each, so the
# same batch of 8 rows trains with 8 times the penalty when it is cut into 8 micro-batches. The
# cross entropy does not depend on that: Trainer divides it by the tokens of the whole step.
# One would expect: `loss` in evaluation is the cross entropy, and cutting a batch into
# micro-batches changes nothing.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import sys

import peft
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
rows = torch.randint(64, (8, 10), generator=torch.Generator().manual_seed(3))


def build(kind):
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
    common = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    if kind == "LoRA":
        return get_peft_model(model, LoraConfig(**common))
    return get_peft_model(model, AdaLoraConfig(init_r=12, target_r=8, total_step=100, **common))


class Losses(transformers.TrainerCallback):
    def on_log(self, args, state, control, logs=None, **others):
        if "loss" in logs:
            seen.append(float(logs["loss"]))


print(f"transformers {transformers.__version__}, peft {peft.__version__}")
for kind in ("LoRA", "AdaLoRA"):
    model = build(kind).eval()
    with torch.no_grad():
        out = model(rows, labels=rows)
    entropy = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    print(f"{kind}, evaluation: loss {out.loss:.2f}, cross entropy {entropy:.2f}")
    seen = []
    for micro_batches in (1, 2, 8):
        arguments = TrainingArguments(
            sys.argv[1], per_device_train_batch_size=8 // micro_batches,
            gradient_accumulation_steps=micro_batches, max_steps=1, learning_rate=0.0,
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(build(kind), arguments, train_dataset=data, callbacks=[Losses()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    print(
        f"{kind}, loss of one step in 1, 2 and 8 micro-batches:", *(f"{loss:.2f}" for loss in seen)
    )
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/run")
python3 --version
printf 'expected: 4.16 in evaluation, and equal losses in a line\nseen:\n%s\n' "$seen"

wanted="transformers 5.24.0, peft 0.21.2
LoRA, evaluation: loss 4.16, cross entropy 4.16
LoRA, loss of one step in 1, 2 and 8 micro-batches: 4.16 4.16 4.16
AdaLoRA, evaluation: loss 5.87, cross entropy 4.16
AdaLoRA, loss of one step in 1, 2 and 8 micro-batches: 5.87 7.59 17.86"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
