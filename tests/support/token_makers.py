"""Processes that want the same rows' tokens, of which the one that makes them takes its time.

`python -m tests.support.token_makers TOKENIZER SECONDS PROCESSES`; each says "made" if it makes
them, and the tokens.
"""

from __future__ import annotations

import os
import sys
import time

from transformers import PreTrainedTokenizerFast

from bayeslora_cli.data import token_cache
from bayeslora_cli.tasks.task import Examples

real = token_cache.encode


def slow(examples, *rest):
    if len(examples) > 1:
        os.write(1, b"made\n")
        time.sleep(float(sys.argv[2]))
    return real(examples, *rest)


if __name__ == "__main__":
    token_cache.encode = slow
    for _ in range(int(sys.argv[3]) - 1):
        if os.fork() == 0:
            break
    rows = Examples(["w1 w2 w3", "w4"], ["w5 w6", ""], None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
    found = token_cache.encode_once(rows, tokenizer, 5)
    os.write(1, f"{found['tokens'].tolist()}\n".encode())
