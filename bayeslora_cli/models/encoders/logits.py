"""The logits of an encoder with a head, of padded rows or of packed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.models.backbones.input_limits import unused_positions
from bayeslora_cli.models.encoders.packed_rows import PackedBatch, packed_rows, present_batch

ASIDE = ("row_offsets", "longest", "first_tokens")
"""Tensors of a packed batch that the backbone does not get."""


def logits(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of a model for sequence classification.

    Args:
        module: the model, with its head; for packed rows `pool_packed_rows` has prepared it.
        batch: padded rows, such as `input_ids` and `attention_mask` (b, w); or packed rows, as
            `data.packing.token_batch` makes them.
    Returns:
        (b, outputs)
    """
    if "row_offsets" in batch:
        return packed_logits(module, batch)
    found: Tensor = module(**batch).logits
    return found


def packed_logits(module: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute the logits of packed rows.

    Args:
        module, batch: as for `logits`; without `first_tokens` in the batch nothing is pooled.
    Returns:
        (b, outputs), or without `first_tokens` those of each token, (1, t, outputs).
    """
    inputs = {name: value for name, value in batch.items() if name not in ASIDE}
    inputs["position_ids"] = _positions(module.config, batch["input_ids"], batch["position_ids"])
    if not _takes_the_mean(module.config):
        # not for the attention, which gets `Rows`: without a mask transformers reads from the GPU
        # whether there is padding
        inputs["attention_mask"] = torch.ones_like(batch["input_ids"])
    rows = batch["row_offsets"], batch.get("longest")
    with packed_rows(PackedBatch(rows=rows, first_tokens=batch.get("first_tokens"))):
        found: Tensor = module(**inputs).logits
    return found


def _positions(config: Any, input_ids: Tensor, position: Tensor) -> Tensor:
    """Return positions as the backbone counts them: from `unused_positions`, as RoBERTa does.

    There a padding token in a text, such as the only one of an empty text, has no position of its
    own and does not count for those behind it.

    Args:
        input_ids, position: (1, t); positions begin at 0 in each row.
    """
    first = unused_positions(config)
    if not first:
        return position
    blank = input_ids == first - 1
    seen = blank.cumsum(1)
    start = torch.arange(position.shape[1], device=position.device) - position
    before = seen - seen.gather(1, start) + blank.gather(1, start)
    return torch.where(blank, first - 1, position + first - before)


def pool_packed_rows(module: Any) -> None:
    """Have a model's head see what it pools of each packed row, as the first token of a row.

    Heads read the first place of (b, w, width). After the last block of a packed batch they get
    (b, 1, width): the first token's state, or the mean of all where the head takes the mean.
    """
    base = module.base_model
    # a pooler inside the base model comes after the encoder inside the base model
    owner = base if getattr(base, "pooler", None) is None else base.encoder
    take = _means if _takes_the_mean(module.config) else _first_states

    def pool(_: nn.Module, __: Any, output: Any) -> Any:
        batch = present_batch()
        if batch is None or batch.first_tokens is None:
            return None
        if isinstance(output, tuple):
            return take(output[0], batch), *output[1:]
        output["last_hidden_state"] = take(output["last_hidden_state"], batch)
        return output

    owner.register_forward_hook(pool)


def _takes_the_mean(config: Any) -> bool:
    return getattr(config, "classifier_pooling", "cls") == "mean"


def _first_states(states: Tensor, batch: PackedBatch) -> Tensor:
    """Select the state of each row's first token: (1, t, width) -> (b, 1, width)."""
    assert batch.first_tokens is not None
    return states.squeeze(0).index_select(0, batch.first_tokens).unsqueeze(1)


def _means(states: Tensor, batch: PackedBatch) -> Tensor:
    """Average the states of each row: (1, t, width) -> (b, 1, width)."""
    assert batch.first_tokens is not None
    offsets, first = _offsets(batch), batch.first_tokens[:, None]
    stop = offsets[torch.searchsorted(offsets, first, right=True)]
    token = torch.arange(states.shape[1], device=states.device)
    # a product: sums in a fixed order, which index_add has not
    sums = ((token >= first) & (token < stop)).to(states.dtype) @ states.squeeze(0)
    return (sums / (stop - first)).to(states.dtype).unsqueeze(1)


def _offsets(batch: PackedBatch) -> Tensor:
    """Return (rows + 1,) int64; on a CPU offsets have values even where states are only shapes."""
    offsets = batch.rows[0]
    return torch.tensor(offsets.tolist()) if offsets.device.type == "cpu" else offsets.long()
