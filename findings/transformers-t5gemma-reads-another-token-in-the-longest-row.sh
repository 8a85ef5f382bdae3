#!/usr/bin/env bash
# T5Gemma for sequence classification, transformers 5.24: a row's logits depend on whether another
# row of its batch is longer. The decoder reads the row shifted right by one, so the place of its
# last token is one further; in the longest row, which has no such place, the code clamps it to the
# last one, which holds the last token but one. A row alone is always the longest.
# One would expect: padding changes nothing, as with T5 and Gemma, which the script tries as well.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import torch
import transformers
from transformers import (
    GemmaConfig,
    GemmaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    T5GemmaConfig,
    T5GemmaForSequenceClassification,
)

sizes = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}
t5 = T5Config(
    vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0,
    eos_token_id=2, decoder_start_token_id=0,
)
alone = torch.tensor([[5, 6, 7, 2]])
padded = torch.tensor([[5, 6, 7, 2, 0, 0], [5, 6, 7, 8, 9, 2]])
print(f"transformers {transformers.__version__}")
for model_class, config in (
    (T5ForSequenceClassification, t5),
    (GemmaForSequenceClassification, GemmaConfig(**sizes)),
    (T5GemmaForSequenceClassification, T5GemmaConfig(encoder=dict(sizes), decoder=dict(sizes),
                                                     pad_token_id=0)),
):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        by_itself = model(input_ids=alone, attention_mask=alone.ne(0).long()).logits[0]
        in_batch = model(input_ids=padded, attention_mask=padded.ne(0).long()).logits[0]
    change = float((by_itself - in_batch).abs().max())
    print(f"{model_class.__name__}: padding changes a logit by {change:.4f}")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
seen=$("$folder/venv/bin/python" "$folder/try.py" 2>/dev/null)
python3 --version
printf 'expected: 0.0000 everywhere\nseen:\n%s\n' "$seen"

wanted="transformers 5.24.0
T5ForSequenceClassification: padding changes a logit by 0.0000
GemmaForSequenceClassification: padding changes a logit by 0.0000
T5GemmaForSequenceClassification: padding changes a logit by 0.2532"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
