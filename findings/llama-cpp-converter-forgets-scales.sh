#!/usr/bin/env bash
# llama.cpp (of llama-cpp-python 0.3.36): `convert_lora_to_gguf.py` reads `lora_alpha` of an adapter
# and neither `alpha_pattern` nor `use_rslora`. Three adapters of PEFT with the same matrices and
# other scales become the same file, byte by byte, without a warning. llama.cpp multiplies by
# alpha / rank, so two of them compute something else there than in PEFT.
# One would expect: other files, or a refusal.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import hashlib
import subprocess
import sys
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

folder, converter = Path(sys.argv[1]), sys.argv[2]


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


base().save_pretrained(folder / "base")
print(f"peft {peft.__version__}")
first = None
for name, options in {
    "plain": {},
    "alpha_pattern": {"alpha_pattern": {"model.layers.1.self_attn.q_proj": 16}},
    "use_rslora": {"use_rslora": True},
}.items():
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, **options
    )
    model = get_peft_model(base(), config).eval()
    model.save_pretrained(folder / name / "adapter")  # the name of a folder is in the file
    layers = model.base_model.model.model.layers
    scales = [layer.self_attn.q_proj.scaling["default"] for layer in layers]
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits
    first = logits if first is None else first
    same = "the same" if torch.allclose(logits, first, atol=1e-5) else "other"
    out = folder / f"{name}.gguf"
    command = [sys.executable, converter, "--base", folder / "base", "--outfile", out]
    said = subprocess.run(
        [*command, folder / name / "adapter"], capture_output=True, text=True, check=True, cwd=folder
    )
    warned = "warned" if "WARN" in said.stderr.upper() else "no warning"
    print(f"{name}: scales in PEFT {scales}, {same} logits; converted, {warned}")

names = ("plain", "alpha_pattern", "use_rslora")
digests = {hashlib.sha256((folder / f"{name}.gguf").read_bytes()).hexdigest() for name in names}
print(f"{len(digests)} different file{'s' * (len(digests) > 1)} of {len(names)}")
PYTHON

python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 scikit-build-core \
    sentencepiece protobuf
# the source of llama.cpp, of which only Python is run
"$pip" download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest "$folder" llama-cpp-python==0.3.36
tar xzf "$folder"/llama_cpp_python-0.3.36.tar.gz -C "$folder"
converter="$folder/llama_cpp_python-0.3.36/vendor/llama.cpp/convert_lora_to_gguf.py"
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder" "$converter")
python3 --version
printf 'expected: files that differ, as the logits do\nseen:\n%s\n' "$seen"

wanted="peft 0.21.2
plain: scales in PEFT [1.0, 1.0], the same logits; converted, no warning
alpha_pattern: scales in PEFT [1.0, 4.0], other logits; converted, no warning
use_rslora: scales in PEFT [2.0, 2.0], other logits; converted, no warning
1 different file of 3"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
