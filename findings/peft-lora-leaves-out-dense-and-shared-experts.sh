#!/usr/bin/env bash
# PEFT 0.21 with transformers 5: plain LoRA with the targets gate_proj, up_proj and down_proj, on a
# model that has dense or shared experts beside the routed ones (DeepSeek-V2 and V3, Qwen3-Next,
# HunYuan-MoE). The targets are taken for the parameters of the routed experts; the linear layers
# that have these very names get no adapter, without an error or a warning. An adapter that holds
# weights for them is opened without one, too, with other predictions.
# One would expect: all of them are adapted, as AdaLoRA in the same PEFT adapts the linear layers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import peft
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForSequenceClassification

config = DeepseekV3Config(
    vocab_size=16, hidden_size=16, intermediate_size=32, moe_intermediate_size=8,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4,
    num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    pad_token_id=0,
)
options = {"target_modules": ["gate_proj", "up_proj", "down_proj"], "task_type": "SEQ_CLS"}
print(f"transformers {transformers.__version__}, PEFT {peft.__version__}")
for chosen in (
    LoraConfig(r=2, **options),
    AdaLoraConfig(init_r=2, total_step=10, tinit=1, tfinal=1, **options),
):
    torch.manual_seed(0)
    model = get_peft_model(DeepseekV3ForSequenceClassification(config), chosen)
    names = (name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name)
    found = sorted({name.removeprefix("base_model.model.model.layers.") for name in names})
    print(f"{type(chosen).__name__}: {', '.join(found)}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
seen=$("$folder/venv/bin/python" "$folder/try.py" 2>/dev/null)
python3 --version
printf 'expected: 0.mlp.* and 1.mlp.shared_experts.* in both lists\nseen:\n%s\n' "$seen"

wanted="transformers 5.24.0, PEFT 0.21.2
LoraConfig: 1.mlp.experts, 1.mlp.experts.base_layer
AdaLoraConfig: 0.mlp.down_proj, 0.mlp.gate_proj, 0.mlp.up_proj, 1.mlp.shared_experts.down_proj, \
1.mlp.shared_experts.gate_proj, 1.mlp.shared_experts.up_proj"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
