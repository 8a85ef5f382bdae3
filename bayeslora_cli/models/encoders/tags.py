"""The logits of an encoder's tokens, at the places that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayeslora_cli.models.encoders.logits import logits

_ASIDE = ("predicting", "targets")


def tag_logits(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of a model for token classification.

    Args:
        module: the model, with its head.
        batch: padded rows, such as `input_ids` (b, w), or packed ones, as
            `data.packing.token_batch` makes them, and `predicting` (c,): places in the flattened
            rows.
    Returns:
        (c, outputs)
    """
    inputs = {name: value for name, value in batch.items() if name not in _ASIDE}
    found = logits(module, inputs)  # (b, w, outputs)
    return found.flatten(0, 1).index_select(0, batch["predicting"])
