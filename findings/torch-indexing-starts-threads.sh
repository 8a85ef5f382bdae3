#!/usr/bin/env bash
# torch 2.13, CPU: `repeat_interleave` of 32 numbers by counts starts all threads of the pool, and so does
# `x[places]` for 8,192 places; `index_select`, which returns the same, starts none. Where the cores
# are busy with other work, waiting for these threads takes a hundred times as long as the copy.
# One would expect: work of some microseconds stays on one thread, whatever the call is named.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import os
import sys

import torch

torch.set_num_threads(4)
numbers, places = torch.arange(32), torch.arange(8192)
calls = {
    "repeat_interleave by 32 counts": lambda: torch.repeat_interleave(numbers, numbers),
    "x[places], 8,192 places": lambda: places[places],
    "index_select, 8,192 places": lambda: places.index_select(0, places),
    "gather, 8,192 places": lambda: places.gather(0, places),
}
name = list(calls)[int(sys.argv[1])]
before = len(os.listdir("/proc/self/task"))
calls[name]()
print(f"{name}: {len(os.listdir('/proc/self/task')) - before} threads started")
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
seen=$(for call in 0 1 2 3; do "$folder/venv/bin/python" "$folder/try.py" "$call" 2>/dev/null; done)
python3 --version
"$folder/venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
printf 'expected: 0 threads started by each, of at most 4\nseen:\n%s\n' "$seen"

wanted="repeat_interleave by 32 counts: 3 threads started
x[places], 8,192 places: 3 threads started
index_select, 8,192 places: 0 threads started
gather, 8,192 places: 0 threads started"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
