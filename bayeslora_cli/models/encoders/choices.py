"""The logits of an encoder's choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bayeslora_cli.tasks.objectives.choice import MISSING


def choice_logits(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of a model for multiple choice.

    Args:
        module: the model, with its head.
        batch: padded sequences, such as `input_ids` (b, k, w), and `missing` (b, k): whether a row
            has no such choice.
    Returns:
        (b, k)
    """
    found: Tensor = module(**{name: x for name, x in batch.items() if name != "missing"}).logits
    return found.masked_fill(batch["missing"], MISSING)
