"""The exports in transformers and PEFT: the reference of the other readers.

python tests/serving/read_transformers.py OUT
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import answers
import peft
import torch
import transformers
from answers import Answers
from peft import PeftModel
from transformers import AutoModelForCausalLM


@torch.no_grad()
def ask(model: Any, root: Path, said: list[list[int]] | None = None) -> Answers:
    prompts, new = answers.prompts(root), answers.new_tokens(root)
    given = [torch.tensor([prompt]) for prompt in prompts]
    # the token that ends an answer is one like others, as in the other readers
    options = {"max_new_tokens": new, "eos_token_id": -1, "do_sample": False}
    greedy = [
        model.generate(one, attention_mask=torch.ones_like(one), **options)[0, one.shape[1] :]
        for one in given
    ]
    found = Answers(greedy=[tokens.tolist() for tokens in greedy])
    for prompt, answer in zip(prompts, said or found.greedy, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        scores = logits.double().log_softmax(-1)
        found.logprobs.append([float(row[t]) for row, t in zip(scores, answer, strict=True)])
    return found


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def read(root: Path) -> dict[str, Answers]:
    found = {"merged": ask(load(root / "merged"), root)}
    said = found["merged"].greedy
    found["base"] = ask(load(root / "base"), root, said)
    for name in ("lora", "patterns", "wrong-scales"):
        adapted = PeftModel.from_pretrained(load(root / "base"), root / name).eval()
        found[name] = ask(adapted, root, said)
    return found


if __name__ == "__main__":
    version = f"{transformers.__version__}, peft {peft.__version__}"
    answers.read_all("transformers", version, read)
