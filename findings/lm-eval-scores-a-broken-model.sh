#!/usr/bin/env bash
# lm-eval 0.4.13: where a model's log-likelihoods are not numbers, the first choice counts as the
# model's answer. A broken model (here: its output layer is no number) is then as good as always
# answering A: it gets 0.5 here, where chance is 0.25, without a warning.
# One would expect: an error, or an accuracy that is no number, as the Brier score's is.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import json
import os
import sys
from importlib.metadata import version

os.environ["HF_HOME"] = sys.argv[1]  # caches go into the temporary folder
import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

os.makedirs(sys.argv[1])
path = f"{sys.argv[1]}/questions.jsonl"
with open(path, "w", encoding="utf-8") as file:
    for number, answer in enumerate("ABADACAB"):
        file.write(json.dumps({"question": f"Which {number} ?", "answer": answer}) + "\n")
task = {
    "task": "letters",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": path}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}} Answer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "brier_score"}],
}
words = ["<unk>", "</s>", "Which", "?", "Answer:", *"ABCD", *"01234567"]
splitter = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=splitter, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
)
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
)
model.lm_head.weight.data.fill_(float("nan"))
wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
found = lm_eval.simple_evaluate(model=wrapped, tasks=[task], bootstrap_iters=0)
scores = found["results"]["letters"]
print(f"lm-eval {version('lm-eval')}, transformers {transformers.__version__}")
print("log-likelihoods:", [pair[0] for pair in found["samples"]["letters"][0]["filtered_resps"]])
print(f"accuracy {scores['acc,none']}, Brier score {scores['brier_score,none']}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 lm-eval==0.4.13
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/data")
python3 --version
printf 'expected: an error, or no accuracy\nseen:\n%s\n' "$seen"

wanted="lm-eval 0.4.13, transformers 5.24.0
log-likelihoods: [nan, nan, nan, nan]
accuracy 0.5, Brier score nan"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
