"""The logits of an encoder's tokens, at the places that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_ASIDE = ("predicting", "targets")


def tag_logits(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of a model for token classification.

    Args:
        module: the model, with its head.
        batch: padded rows, such as `input_ids` (b, w), and `predicting` (c,): places in the
            flattened rows.
    Returns:
        (c, outputs)
    """
    inputs = {name: value for name, value in batch.items() if name not in _ASIDE}
    found: Tensor = module(**inputs).logits.flatten(0, 1)
    return found.index_select(0, batch["predicting"])
