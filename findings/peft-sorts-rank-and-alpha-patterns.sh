#!/usr/bin/env bash
# peft 0.21: where two keys of `rank_pattern` or `alpha_pattern` fit a layer, the first one counts,
# and saving sorts the keys. So an adapter can compute something else after it is opened again, with
# no warning: here layer 1 is scaled by 0.5 in training and by 4 afterwards. With ranks in place of
# alphas the adapter cannot be opened again, as shapes disagree.
# One would expect: the saved adapter computes what the trained one did.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import json
import sys
import warnings

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def scales(model):
    """Return alpha / r of the query projection of each layer."""
    layers = model.base_model.model.model.layers
    return [layer.self_attn.q_proj.scaling["default"] for layer in layers]


alphas = {"self_attn.q_proj": 2, "1.self_attn.q_proj": 16}
config = LoraConfig(r=4, target_modules=["q_proj"], alpha_pattern=alphas, init_lora_weights=False)
trained = get_peft_model(base(), config).eval()
warnings.simplefilter("error", UserWarning)  # a warning would be an answer too
trained.save_pretrained(sys.argv[1])
opened = PeftModel.from_pretrained(base(), sys.argv[1]).eval()
with open(f"{sys.argv[1]}/adapter_config.json", encoding="utf-8") as file:
    saved = json.load(file)["alpha_pattern"]
tokens = torch.arange(12)[None]
same = torch.allclose(trained(tokens).logits, opened(tokens).logits, atol=1e-5)
print(f"peft {peft.__version__}")
print(f"trained: keys {list(alphas)}, scales {scales(trained)}")
print(f"opened again: keys {list(saved)}, scales {scales(opened)}")
print("same logits" if same else "other logits")

ranks = {"self_attn.q_proj": 8, "1.self_attn.q_proj": 2}
config = LoraConfig(r=4, target_modules=["q_proj"], rank_pattern=ranks)
get_peft_model(base(), config).save_pretrained(sys.argv[1])
try:
    PeftModel.from_pretrained(base(), sys.argv[1])
    print("ranks: opened")
except RuntimeError as error:
    print("ranks: not opened,", "size mismatch" if "size mismatch" in str(error) else error)
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/adapter")
python3 --version
printf 'expected: the same scales and the same logits\nseen:\n%s\n' "$seen"

wanted="peft 0.21.2
trained: keys ['self_attn.q_proj', '1.self_attn.q_proj'], scales [0.5, 0.5]
opened again: keys ['1.self_attn.q_proj', 'self_attn.q_proj'], scales [0.5, 4.0]
other logits
ranks: not opened, size mismatch"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
