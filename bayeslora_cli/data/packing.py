"""Batches whose tokens are predicted: packed rows, one after the other, or padded rows.

On a GPU all sizes are rounded up to few values, since each needs a captured graph of its own. What
fills the rest are further rows, which no row sees and of which nothing counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.data.tokenization import TokenisedSplit
from bayeslora_cli.models.decoders.packed_attention import has_even_kernel
from bayeslora_cli.tasks.objectives.causal import PADDING


def token_batch(
    split: TokenisedSplit, indices: Tensor, width: int, device: torch.device
) -> dict[str, Tensor]:
    """Return the rows `indices` (b,) of a split with `counted`, packed if `split.packed`.

    Args:
        width: what to pad rows to that are not packed.
    Returns:
        `predicting` (c,), places whose next token counts, and `targets` (c,), those next tokens or
        `PADDING`. Packed: `input_ids` and `position_ids` (1, t), `row_offsets` (rows + 1,) int32,
        and on a GPU `longest` (0, n): no row is longer than n; or (1, n): each has n tokens.
        Padded: `input_ids` and `attention_mask` (b, width). All but `row_offsets` are int64.
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
    if fixed:
        aims = len(batch["targets"])
        more = bucket(aims, least=16, per_octave=4) - aims
        # different places: gradients of one place are added one after the other
        places = torch.arange(more) % batch["input_ids"].numel()
        batch["predicting"] = torch.cat((batch["predicting"], places))
        batch["targets"] = F.pad(batch["targets"], (0, more), value=PADDING)
        if "columns" in batch:
            batch["columns"] = F.pad(batch["columns"], (0, more))
    return batch


def pack(
    split: TokenisedSplit, indices: Tensor, *, fixed: bool, even: bool = False
) -> dict[str, Tensor]:
    """Lay rows one after the other; see `token_batch`.

    Args:
        fixed: round all sizes up.
        even: tell, by the shape of `longest`, whether all rows have one length.
    """
    assert split.counted is not None
    lengths = split.lengths[indices]
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    tokens = int(offsets[-1])
    position = torch.arange(tokens) - torch.repeat_interleave(offsets[:-1], lengths)
    places = position + torch.repeat_interleave(split.offsets[indices], lengths)
    ids = split.tokens[places].long()
    aims = split.counted[places].nonzero().squeeze(1)
    batch = split.aims(places[aims], aims)
    if fixed:
        more = bucket(tokens, least=64, per_octave=8) - tokens
        ids = torch.cat((ids, ids.new_full((more,), split.pad_id)))
        # no position that no row has: tables of positions end, and some rotary angles change there
        position = torch.cat((position, torch.arange(more) % lengths.max()))
        rows = bucket(len(indices), least=1, per_octave=4) + 1 - len(indices)
        offsets = torch.cat((offsets, offsets.new_full((rows,), tokens + more)))
        longest = bucket(max(int(lengths.max()), more), least=64, per_octave=1)
        batch["longest"] = torch.empty(0, longest)
        if even and not more and bool((lengths == lengths[0]).all()):
            batch["longest"] = torch.zeros(1, int(lengths[0]))
    return batch | {
        "input_ids": ids[None],
        "position_ids": position[None],
        "row_offsets": offsets.int(),
    }


def bucket(size: int, *, least: int, per_octave: int) -> int:
    """Round a size up to one of `per_octave` values between a power of two and the next.

    Args:
        least: all results are multiples of it.
        per_octave: a power of two.
    """
    unit = max(least, 1 << max(0, (size - 1).bit_length() - per_octave.bit_length()))
    return -(-size // unit) * unit


def rows_of(batch: Mapping[str, Tensor]) -> int:
    """Return the number of rows of a batch, those that only fill it included."""
    offsets = batch.get("row_offsets")
    return len(batch["input_ids"]) if offsets is None else len(offsets) - 1
