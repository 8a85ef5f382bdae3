"""The embeddings of texts by an encoder: means of its last states, of length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def embeddings(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the embedding of each sequence.

    Args:
        module: the model, without a head.
        batch: padded sequences, such as `input_ids` (b, k, w).
    Returns:
        (b, k, d), each of length 1.
    """
    inputs = {name: x.flatten(0, 1) for name, x in batch.items() if name != "missing"}
    states = module(**inputs).last_hidden_state.float()  # (b k, w, d)
    mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
    found = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return F.normalize(found, dim=-1).view(*batch["input_ids"].shape[:2], -1)
