"""The exports in vLLM; needs vLLM only.

python tests/serving/read_vllm.py OUT
"""

from __future__ import annotations

import json
from pathlib import Path

import answers
import vllm
from answers import Answers
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

ADAPTERS = ("lora", "patterns", "wrong-scales")


def start(model: Path, **options: object) -> LLM:
    return LLM(
        str(model), dtype="float32", max_model_len=256, max_num_seqs=32, enforce_eager=True,
        enable_prefix_caching=False, **options,
    )  # fmt: skip


def ask(llm: LLM, root: Path, adapter: LoRARequest | None = None) -> Answers:
    greedy = SamplingParams(temperature=0, max_tokens=answers.new_tokens(root), ignore_eos=True)
    prompts = [{"prompt_token_ids": tokens} for tokens in answers.prompts(root)]
    said = llm.generate(prompts, greedy, lora_request=adapter, use_tqdm=False)
    found = Answers(greedy=[list(one.outputs[0].token_ids) for one in said])
    # the CPU build has no log-probabilities of a prompt with LoRA: each token is the only one that
    # may come after those before it, and what is told is its probability among all
    for prompt, answer in answers.texts(root):
        only = [
            SamplingParams(temperature=0, max_tokens=1, logprobs=0, allowed_token_ids=[token])
            for token in answer
        ]
        given = [{"prompt_token_ids": prompt + answer[:end]} for end in range(len(answer))]
        told = llm.generate(given, only, lora_request=adapter, use_tqdm=False)
        steps = [one.outputs[0].logprobs[0] for one in told]
        found.logprobs.append([s[t].logprob for s, t in zip(steps, answer, strict=True)])
    return found


def read(root: Path) -> dict[str, Answers]:
    ranks = [
        json.loads((root / name / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        for name in ADAPTERS
    ]
    sizes = (8, 16, 32, 64, 128, 256, 320, 512)
    widest = next(size for size in sizes if size >= max(ranks))
    found = {}
    llm = start(root / "base", enable_lora=True, max_lora_rank=widest)
    found["base"] = ask(llm, root)
    for number, name in enumerate(ADAPTERS, start=1):
        found[name] = ask(llm, root, LoRARequest(name, number, str(root / name)))
    del llm
    found["merged"] = ask(start(root / "merged"), root)
    return found


if __name__ == "__main__":
    answers.read_all("vllm", vllm.__version__, read)
