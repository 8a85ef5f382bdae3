#!/usr/bin/env bash
# datasets 5.2: a column of a JSON Lines file in which every text is a date is read as a column of
# times. An answer "2024-01-05" comes back as `datetime`, and as text is then
# "2024-01-05 00:00:00": what a model is trained to say. Inside `messages` the same text stays text,
# so one conversation in the two usual forms gives two different answers. A single row that is no
# date keeps the column as it is.
# One would expect: a JSON string comes back as that string.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import json
import os
import sys

os.environ["HF_HOME"] = sys.argv[1]  # its cache goes into the temporary folder
import datasets  # noqa: E402

datasets.disable_progress_bars()


def answers(form, days, name):
    """Write one row per day in a form and return the answers as datasets reads them."""
    path = f"{sys.argv[1]}/{name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for day in days:
            turns = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": day}]
            pair = {"prompt": "When?", "completion": day}
            file.write(json.dumps(pair if form == "completion" else {"messages": turns}) + "\n")
    rows = datasets.load_dataset("json", data_files=path, split="train")
    if form == "completion":
        return [str(row["completion"]) for row in rows]
    return [str(row["messages"][1]["content"]) for row in rows]


os.makedirs(sys.argv[1])
print(f"datasets {datasets.__version__}")
days = ["2024-01-05", "2023-12-31"]
print("completion:", answers("completion", days, "a"))
print("messages:", answers("messages", days, "b"))
print("completion, one answer is no date:", answers("completion", [*days, "unknown"], "c"))
PYTHON

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/data")
python3 --version
printf "expected: ['2024-01-05', '2023-12-31'] in both forms\nseen:\n%s\n" "$seen"

wanted="datasets 5.2.0
completion: ['2024-01-05 00:00:00', '2023-12-31 00:00:00']
messages: ['2024-01-05', '2023-12-31']
completion, one answer is no date: ['2024-01-05', '2023-12-31', 'unknown']"
[ "$seen" = "$wanted" ] || { echo "this has changed" >&2; exit 1; }
