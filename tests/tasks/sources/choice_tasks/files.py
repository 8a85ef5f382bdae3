"""Small files in the layouts of the tasks of multiple choice."""

from __future__ import annotations

import csv
import json

SUBJECTS = ("astronomy", "philosophy")


def alpaca_row(question, choices, answer, name="answer"):
    names = [f"{name}{place + 1}" for place in range(len(choices))]
    listed = " ".join(f"{n.capitalize()}: {c}" for n, c in zip(names, choices, strict=True))
    return {
        "instruction": (
            f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
            f"Answer format: {'/'.join(names)}"
        ),
        "input": "",
        "output": f"the correct answer is {names[answer]}",
        "answer": names[answer],
    }


def write_arc(data, *, train=8, test=4, folder="ARC-Easy"):
    """Questions that name their own answer, as train.json and test.json."""
    place = data / folder
    place.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        questions = [
            alpaca_row(f"Which is w{row}?", [f"w{row + k}" for k in range(3 + row % 2)], row % 3)
            for row in range(rows)
        ]
        (place / f"{split}.json").write_text(json.dumps(questions), encoding="utf-8")
    return data


def write_mmlu(data, *, rows=3):
    """Two subjects, with dev, val and test."""
    for split in ("dev", "val", "test"):
        folder = data / "mmlu" / "data" / split
        folder.mkdir(parents=True)
        for subject in SUBJECTS:
            with (folder / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(
                    [f"{split} w{row}, {subject}?", "w1", "w2", "w3", "w4", "ABCD"[row % 4]]
                    for row in range(rows)
                )
    return data
