"""A finished run of a tiny language model, trained on chats, with its model in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import bayeslora_cli as bl
from tests.support.gguf_models import write_gguf


def write_chats(path: Path, rows: int = 12) -> Path:
    """Chats in which the assistant repeats a letter."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"say {letter}"},
                {"role": "assistant", "content": 3 * letter},
            ]
        }
        for letter in ("abcdefgh" * rows)[:rows]
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def chat_run(directory: Path, **options) -> bl.Run:
    """Train a few steps, so that ranks are pruned and IVON has a posterior."""
    # one that says more than one token
    write_gguf(directory / "tiny.gguf", tied=False, spread=0.5)
    rows = str(write_chats(directory / "chats.jsonl"))
    settings = {
        "model": str(directory / "tiny.gguf"), "train_file": rows, "eval_file": rows,
        "output": str(directory / "runs"), "max_steps": 6, "batch_size": 4, "lr": 0.1,
        "t_init": 1, "t_final": 1, "device": "cpu",
    }  # fmt: skip
    return bl.train(**settings | options)
