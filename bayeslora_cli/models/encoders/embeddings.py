"""The embeddings of texts by an encoder, of length 1: what its last states are pooled to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.config.catalogue import CLS


def embeddings(module: Any, batch: Mapping[str, Tensor], pooling: str) -> Tensor:
    """Compute the embedding of each sequence.

    Args:
        module: the model, without a head.
        batch: padded sequences, such as `input_ids` (b, k, w).
        pooling: mean of the states of a sequence's tokens, or cls, the state of its first one.
    Returns:
        (b, k, d), each of length 1.
    """
    inputs = {name: x.flatten(0, 1) for name, x in batch.items() if name != "missing"}
    states = module(**inputs).last_hidden_state.float()  # (b k, w, d)
    if pooling == CLS:
        found = states[:, 0]
    else:
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        found = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return F.normalize(found, dim=-1).view(*batch["input_ids"].shape[:2], -1)
