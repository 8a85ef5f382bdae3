"""Hold what the readers said of the exports against each other; exit 1 if one is wrong.

python tests/serving/compare.py OUT

For each reader: the largest difference of a token's log-probability between the adapter on its base
and the merged model, both in that reader; between its merged model and transformers'; the effect of
the adapter; in how many prompts all greedy tokens agree; and how far off the wrong form is, which
must be seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from answers import MODELS

READERS = {
    "transformers": (("lora", "patterns"), "wrong-scales"),
    "vllm": (("lora", "patterns"), "wrong-scales"),
    "llama.cpp": (("gguf",), "wrong-rows"),
}
"""File of answers -> the right adapters, and a wrong one."""
BOUND = 1e-3
"""Nats between two ways to compute the same in 32 bits; a wrong form must be beyond it, and what
the adapter changes beyond 100 times of it."""
HEAD = (
    "model", "reader", "form", "adapter and merged", "merged and transformers",
    "effect of the adapter", "same greedy tokens", "a wrong form is off by",
)  # fmt: skip

Found = dict[str, dict[str, list[list[float]]]]


def furthest(a: list[list[float]], b: list[list[float]]) -> float:
    """Return the largest difference, in nats."""
    pairs = [zip(x, y, strict=True) for x, y in zip(a, b, strict=True)]
    return max(abs(x - y) for pair in pairs for x, y in pair)


def agreeing(*answers: list[list[float]]) -> int:
    """Count the prompts that all continue in the same way."""
    return sum(all(one == said[0] for one in said) for said in zip(*answers, strict=True))


def row(
    root: Path, reader: str, right: str, wrong: str, reference: Found
) -> tuple[list[str], bool]:
    """Return the cells of an adapter in a reader, and whether it is as it must be."""
    found: Found = json.loads((root / f"{reader}.json").read_text(encoding="utf-8"))
    logprobs = {name: told["logprobs"] for name, told in found.items() if name != "version"}
    apart = furthest(logprobs[right], logprobs["merged"])
    elsewhere = furthest(logprobs["merged"], reference["merged"]["logprobs"])
    effect = furthest(logprobs[right], logprobs["base"])
    said = (found[right]["greedy"], found["merged"]["greedy"], reference["merged"]["greedy"])
    same, of = agreeing(*said), len(said[0])
    off = furthest(logprobs[wrong], logprobs["merged"])
    good = max(apart, elsewhere) < BOUND < min(effect / 100, off) and same == of
    cells = [
        root.name, f"{reader} {found['version']}", right, f"{apart:.1e}", f"{elsewhere:.1e}",
        f"{effect:.2f}", f"{same} of {of}", f"{off:.2f} ({wrong})",
    ]  # fmt: skip
    return cells, good


def main() -> None:
    out, all_good = Path(sys.argv[1]), True
    rows = [list(HEAD), ["---"] * len(HEAD)]
    for model in sys.argv[2:] or MODELS:
        root = out / model
        reference = json.loads((root / "transformers.json").read_text(encoding="utf-8"))
        for reader, (forms, wrong) in READERS.items():
            if not (root / f"{reader}.json").is_file():
                print(f"{root.name}: {reader} has not been read", file=sys.stderr)
                continue
            for right in forms:
                cells, good = row(root, reader, right, wrong, reference)
                rows.append(cells)
                all_good = all_good and good
    print("\n".join("| " + " | ".join(cells) + " |" for cells in rows))
    if not all_good:
        raise SystemExit("an export is wrong, or a wrong one is not seen")


if __name__ == "__main__":
    main()
