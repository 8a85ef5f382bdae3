"""What a reader of exports says of each of them, and how far apart two of them are.

Every reader writes `OUT/MODEL/READER.json`. This module needs nothing outside the standard library,
as it is imported in the readers' own environments, where bayeslora is not installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MODELS = ("tiny", "qwen2", "blora", "smollm")


@dataclass
class Answers:
    """The answers of one model, or of a base model with an adapter."""

    greedy: list[list[int]] = field(default_factory=list)
    """For each prompt, the likeliest next tokens, one after the other."""
    logprobs: list[list[float]] = field(default_factory=list)
    """For each prompt, the log-probability of each token of the text's answer, in nats."""


def texts(root: Path) -> list[tuple[list[int], list[int]]]:
    """The prompts, each with its answer: what the merged model of transformers says next."""
    said = json.loads((root / "transformers.json").read_text(encoding="utf-8"))["merged"]["greedy"]
    return list(zip(prompts(root), said, strict=True))


def prompts(root: Path) -> list[list[int]]:
    return json.loads((root / "prompts.json").read_text(encoding="utf-8"))["prompts"]


def new_tokens(root: Path) -> int:
    return json.loads((root / "prompts.json").read_text(encoding="utf-8"))["new_tokens"]


def write(root: Path, reader: str, version: str, found: dict[str, Answers]) -> None:
    """Keep what a reader has said, and its version."""
    told = {name: vars(answers) for name, answers in found.items()}
    text = json.dumps({"version": version} | told)
    (root / f"{reader}.json").write_text(text, encoding="utf-8")


def read_all(reader: str, version: str, read: Callable[[Path], dict[str, Answers]]) -> None:
    """Read every model of the directory that is the command's first argument."""
    for model in sys.argv[2:] or MODELS:
        root = Path(sys.argv[1]).resolve() / model
        write(root, reader, version, read(root))
        print(f"{reader} {version}: {root.name} done", flush=True)
