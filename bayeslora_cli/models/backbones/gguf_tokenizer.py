"""Gives a GGUF file's tokenizer the file's own rule for cutting text before its merges.

The file names the rule (`tokenizer.ggml.pre`). transformers 5.24 knows some names and leaves out
the others, without a word; the model then reads numbers and spaces as other tokens than it has
learned.
"""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import pre_tokenizers
from transformers.utils import cached_file

from bayeslora_cli.models.backbones.places import Place, parsed

logger = logging.getLogger("bayeslora")

DIGITS = frozenset({
    "codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder",
})  # fmt: skip
"""Rules by which every digit stands alone, and the rest is cut as GPT-2 does."""
GPT2 = frozenset({"gpt-2", "jais", "mpt", "olmo", "phi-2"})
"""Rules that are GPT-2's. transformers takes it where it knows none, before 5.17 the rule of the
architecture."""


def complete_tokenizer(tokenizer: Any, place: Place) -> None:
    """Set the rule of a tokenizer that transformers has made from a GGUF file.

    Warns of a rule that neither this module nor transformers knows.
    """
    fields = parsed(str(cached_file(place.name, str(place.gguf)))).fields
    kind, named = (fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind is None or named is None or kind.contents() != "gpt2":
        return
    rule = named.contents()
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule in DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), gpt2]
        )
    elif rule in GPT2:
        tokenizer.backend_tokenizer.pre_tokenizer = gpt2
    elif rule not in _known_to_transformers(rule):
        logger.warning(
            "--model %s: text is cut by GPT-2's rule, as the file's own, %r, is not known; the "
            "model's original tokenizer, in a directory with its weights, would be exact",
            place.path, rule,
        )  # fmt: skip


def _known_to_transformers(rule: str) -> set[str]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:  # older ones choose by the architecture
        return {rule}
    return set(getattr(mapping, "GGUF_PRE_TOKENIZER_SPLITS", {rule}))
