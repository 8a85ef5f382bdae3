#!/usr/bin/env bash
# typer 0.27: an option whose metavar is its own name in capitals is renamed by it. Here --task is no
# option any more, and --TASK is one; 0.26 and 0.28 leave the name as it is.
# One would expect: a metavar stands in the help, and changes nothing that is typed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
from typing import Annotated, Optional

import typer

app = typer.Typer()


@app.command()
def evaluate(task: Annotated[Optional[str], typer.Option(metavar="TASK")] = None) -> None:
    print(task)


(option,) = (p for p in typer.main.get_command(app).params if p.name == "task")
print(f"typer {typer.__version__}: {option.opts[0]}")
PYTHON

python3 -m venv "$folder/venv"
seen=""
for version in 0.26.8 0.27.3 0.28.0; do
    "$folder/venv/bin/pip" install --quiet "typer==$version"
    seen+="$("$folder/venv/bin/python" "$folder/try.py")"$'\n'
done
python3 --version
printf 'expected: --task in each version\nseen:\n%s' "$seen"

wanted="typer 0.26.8: --task
typer 0.27.3: --TASK
typer 0.28.0: --task
"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
