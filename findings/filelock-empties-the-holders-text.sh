#!/usr/bin/env bash
# filelock before 3.30: a process that fails to get a lock empties the file that the holder has
# written its name into. One would expect that only the holder of a lock changes the file.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import os
import subprocess
import sys
from pathlib import Path

import filelock

OTHER = """
import sys
import filelock
try:
    filelock.FileLock(sys.argv[1]).acquire(timeout=0)
except filelock.Timeout:
    print("the second process did not get the lock")
"""
path = Path(sys.argv[1]) / "work.lock"
with filelock.FileLock(path):
    path.write_text("held by process 17")
    done = subprocess.run([sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True)
    assert done.stdout.startswith("the second process did not get"), done.stderr
    print(f"filelock {filelock.__version__}: the file says {path.read_text()!r}")
PYTHON

seen=""
for version in 3.29.0 3.30.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "filelock==$version"
    seen+=$("$folder/$version/bin/python" "$folder/try.py" "$folder")$'\n'
done
python3 --version
printf 'expected: both versions say %s\n' "'held by process 17'"
printf 'seen:\n%s' "$seen"

wanted="filelock 3.29.0: the file says ''
filelock 3.30.0: the file says 'held by process 17'
"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
