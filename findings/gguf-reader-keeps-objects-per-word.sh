#!/usr/bin/env bash
# gguf 0.19: a reader of a file keeps four objects that Python's garbage collector tracks for every
# word of the vocabulary, since each value is cut from a memory map, and each cut is a memory map
# with a dictionary of its own. Ten keys and a vocabulary of 49,000 words with its merges are half a
# million objects: reading takes three times as long as from a plain array of the same bytes, and
# each later full collection of the process walks through them.
# One would expect: some objects per key and tensor.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import gc
import sys
from importlib.metadata import version

import numpy
from gguf import GGUFReader, GGUFWriter

path = sys.argv[1]
print(f"gguf {version('gguf')}, numpy {numpy.__version__}")
for words in (1000, 10_000):
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([f"w{i}" for i in range(words)])
    writer.add_tensor("x", numpy.zeros((32, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gc.collect()
    before = len(gc.get_objects())
    reader = GGUFReader(path)
    kept = len(gc.get_objects()) - before
    print(f"{words} words: about {round(kept / words)} objects per word")
    del reader
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gguf==0.19.0 numpy==2.4.6
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/words.gguf" 2>/dev/null)
python3 --version
printf 'expected: about 0 objects per word\nseen:\n%s\n' "$seen"

wanted="gguf 0.19.0, numpy 2.4.6
1000 words: about 4 objects per word
10000 words: about 4 objects per word"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
