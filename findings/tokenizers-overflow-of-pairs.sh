#!/usr/bin/env bash
# tokenizers 0.23: when a pair of texts is truncated, what is cut off is kept as every combination
# of the pieces of both texts, also where nobody asks for it (`return_overflowing_tokens` of
# transformers only hides it). Twice the length takes four times the encodings and the memory.
# One would expect: none unless asked for, or as many as the texts have pieces.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

print(f"tokenizers {tokenizers.__version__}")
tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.enable_truncation(max_length=8)
for words in (50, 100, 200):
    text = "a " * words
    alone, pair = tokenizer.encode(text), tokenizer.encode(text, text)
    print(f"{words} words: {len(alone.overflowing)} further encodings alone, "
          f"{len(pair.overflowing)} of a pair")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
seen=$("$folder/venv/bin/python" "$folder/try.py" 2>/dev/null)
python3 --version
printf 'expected: as many of a pair as its two texts have pieces\nseen:\n%s\n' "$seen"

wanted="tokenizers 0.23.3
50 words: 6 further encodings alone, 168 of a pair
100 words: 12 further encodings alone, 624 of a pair
200 words: 24 further encodings alone, 2499 of a pair"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
