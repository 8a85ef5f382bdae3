"""The exports in llama.cpp, on the base model's GGUF file; needs llama-cpp-python only.

python tests/serving/read_llama_cpp.py OUT
"""

from __future__ import annotations

from pathlib import Path

import answers
import llama_cpp
import numpy as np
from answers import Answers
from llama_cpp import Llama

F32 = 0


def ask(root: Path, model: str, adapter: str | None = None) -> Answers:
    # keys and values are kept in 16 bits unless it is said
    model = Llama(
        str(root / model), lora_path=adapter, n_ctx=256, n_batch=256, n_ubatch=256, logits_all=True,
        type_k=F32, type_v=F32, flash_attn=False, n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    found = Answers()
    for prompt in answers.prompts(root):
        tokens = list(prompt)
        for _ in range(answers.new_tokens(root)):
            fresh = tokens if len(tokens) == len(prompt) else tokens[-1:]
            if fresh is tokens:
                model.reset()
            model.eval(fresh)
            tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        found.greedy.append(tokens[len(prompt) :])
    for prompt, answer in answers.texts(root):
        model.reset()
        model.eval(prompt + answer)
        scores = model.scores[len(prompt) - 1 : model.n_tokens - 1].astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(1, keepdims=True))
        found.logprobs.append([float(row[t]) for row, t in zip(scores, answer, strict=True)])
    model.close()
    return found


def read(root: Path) -> dict[str, Answers]:
    (adapter,) = (root / "gguf").glob("*.gguf")
    return {
        "base": ask(root, "base.gguf"),
        "merged": ask(root, "merged.gguf"),
        "gguf": ask(root, "base.gguf", str(adapter)),
        "wrong-rows": ask(root, "base.gguf", str(root / "wrong-rows.gguf")),
    }


if __name__ == "__main__":
    answers.read_all("llama.cpp", f"llama-cpp-python {llama_cpp.__version__}", read)
