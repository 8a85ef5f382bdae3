"""Batches that are made on the CPU: packed rows, one after the other, or padded rows.

On a GPU all sizes are rounded up to few values, since each needs a captured graph of its own. What
fills the rest are further rows, which no row sees and of which nothing counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.models.decoders.packed_attention import has_even_kernel
from bayeslora_cli.tasks.objectives.causal import PADDING


def token_batch(
    split: TokenisedSplit, indices: Tensor, width: int, device: torch.device
) -> dict[str, Tensor]:
    """Return the rows `indices` (b,) of a split that is `made_on_cpu`, packed if `split.packed`.

    Args:
        width: what to pad rows to that are not packed.
    Returns:
        Packed: `input_ids`, `position_ids` and, if the split has them, `token_type_ids` (1, t);
        `row_offsets` (rows + 1,) int32; and on a GPU `longest` (0, n): no row is longer than n; or
        (1, n): each has n tokens. Padded: `input_ids` and `attention_mask` (b, width). Where tokens
        are predicted, `predicting` (c,), places whose next token counts, and `targets` (c,), those
        next tokens or `PADDING`; otherwise `first_tokens` (b,), places of the rows' first tokens,
        and `labels` (b, ...) if there are any. All but `row_offsets` and `labels` are int64.
    """
    even = has_even_kernel(device)
    batch = collate(split, indices, width, fixed=device.type == "cuda", even=even)
    if device.type != "cuda":
        return batch
    # from pinned memory the copy does not wait for the steps before
    return {name: x.pin_memory().to(device, non_blocking=True) for name, x in batch.items()}


def collate(
    split: TokenisedSplit, indices: Tensor, width: int, *, fixed: bool, even: bool = False
) -> dict[str, Tensor]:
    """Make the batch that `token_batch` returns, on the CPU; see `pack`."""
    batch = (
        pack(split, indices, fixed=fixed, even=even)
        if split.packed
        else split.batch(indices, width)
    )
    if fixed and "targets" in batch:
        aims = len(batch["targets"])
        more = bucket(aims, least=16, per_octave=4) - aims
        # different places: gradients of one place are added one after the other
        places = torch.arange(more) % batch["input_ids"].numel()
        batch["predicting"] = torch.cat((batch["predicting"], places))
        batch["targets"] = F.pad(batch["targets"], (0, more), value=PADDING)
        for name in ("columns", "weights"):
            if name in batch:
                batch[name] = F.pad(batch[name], (0, more))
    return batch


def pack(
    split: TokenisedSplit, indices: Tensor, *, fixed: bool, even: bool = False
) -> dict[str, Tensor]:
    """Lay rows one after the other; see `token_batch`.

    Rows of which one thing is predicted lie in order of length, the longest first: attention then
    meets rows of one length side by side. Rows whose next tokens are predicted are those of
    decoders, all others those of encoders.

    Args:
        fixed: round all sizes up.
        even: tell, by the shape of `longest`, whether all rows have one length, of
            decoders: encoders attend alike in both cases.
    """
    decoder = split.counted is not None and split.tags is None
    picked, lengths = indices, split.lengths[indices]
    if split.counted is None:
        order = torch.argsort(lengths, descending=True, stable=True)
        indices, lengths = indices[order], lengths[order]
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    tokens = int(offsets[-1])
    # `repeat_interleave` starts all threads however few the tokens, `x[places]` from 3,000 on: on a
    # busy host that took 80 ms per batch, and this takes 0.2
    row = torch.bincount(offsets[1:-1], minlength=tokens)[:tokens].cumsum(0)
    position = torch.arange(tokens) - offsets.index_select(0, row)
    places = position + split.offsets[indices].index_select(0, row)
    inputs = {"input_ids": split.tokens.index_select(0, places).long()}
    if split.counted is not None:
        aims = split.counted.index_select(0, places).nonzero().squeeze(1)
        batch = split.aims(places[aims], aims)
    else:
        batch = {"first_tokens": offsets[:-1][torch.argsort(order)]}
        if split.labels is not None:
            batch["labels"] = split.labels[picked]
        if split.weights is not None:
            batch["weights"] = split.weights[picked]
    if split.token_types is not None and not decoder:
        inputs["token_type_ids"] = split.token_types.index_select(0, places).long()
    inputs["position_ids"] = position
    if fixed:
        size = bucket(tokens, least=64, per_octave=8)
        _fill(inputs, split, lengths, size - tokens)
        ends, longest = _filling_rows(lengths, size, decoder=decoder)
        offsets = torch.cat((offsets, ends))
        batch["longest"] = torch.empty(0, longest)
        if even and decoder and size == tokens and bool((lengths == lengths[0]).all()):
            batch["longest"] = torch.zeros(1, int(lengths[0]))
    batch |= {name: value[None] for name, value in inputs.items()}
    return batch | {"row_offsets": offsets.int()}


def _fill(inputs: dict[str, Tensor], split: TokenisedSplit, lengths: Tensor, more: int) -> None:
    """Append `more` tokens of padding to the inputs of packed rows, in place."""
    for name, pad in (("input_ids", split.pad_id), ("token_type_ids", split.pad_type_id)):
        if name in inputs:
            inputs[name] = F.pad(inputs[name], (0, more), value=pad)
    # no position that no row has: tables of positions end, and some rotary angles change there
    filled = torch.arange(more) % lengths.max()
    inputs["position_ids"] = torch.cat((inputs["position_ids"], filled))


def _filling_rows(lengths: Tensor, size: int, *, decoder: bool) -> tuple[Tensor, int]:
    """Return the ends of the rows that fill packed rows up to `size` tokens, and a longest length.

    Their number and that length, which no row exceeds, take few values.
    """
    longest, tokens = int(lengths.max()), int(lengths.sum())
    if decoder:
        rows = bucket(len(lengths), least=1, per_octave=4) + 1 - len(lengths)
        longest = bucket(max(longest, size - tokens), least=64, per_octave=1)
        return lengths.new_full((rows,), size), longest
    # rows as long as the others: with dropout a GPU pads them all to the longest
    longest = bucket(longest, least=32, per_octave=2)
    rows = -(-max(64, size // 8) // longest)  # what is filled is below the unit of `bucket`
    return (tokens + longest * torch.arange(1, rows + 1)).clamp(max=size), longest


def bucket(size: int, *, least: int, per_octave: int) -> int:
    """Round a size up to one of `per_octave` values between a power of two and the next.

    Args:
        least: all results are multiples of it.
        per_octave: a power of two.
    """
    unit = max(least, 1 << max(0, (size - 1).bit_length() - per_octave.bit_length()))
    return -(-size // unit) * unit


def rows_of(batch: Mapping[str, Tensor], *, items: bool = False) -> int:
    """Return the number of rows, or of `TokenisedSplit.items`, that a batch predicts, those that
    only fill it included."""
    if items:
        return len(batch["predicting"])
    if "first_tokens" in batch:
        return len(batch["first_tokens"])
    offsets = batch.get("row_offsets")
    return len(batch["input_ids"]) if offsets is None else len(offsets) - 1
