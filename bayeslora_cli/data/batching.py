"""Makes batches of tokenised rows, and decides the order in which training sees the rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayeslora_cli.data.packing import collate, token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit

POOL = 50  # batches whose rows are grouped by length
EVALUATED_TOKENS = 2**14
"""Tokens of an evaluation's batch, padding included, if tokens are predicted."""


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of steps that see each of n rows once; the last batch may be short."""
    return -(-n // batch_size)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of n rows in one epoch: (n,) int64, a function of only its arguments.

    `seed` and `epoch` are non-negative. numpy's `SeedSequence` mixes them, since torch's CPU
    generator uses 32 bits of its seed, and with seeds such as `seed + epoch` run 1 in epoch 0 would
    get the order of run 0 in epoch 1.
    """
    return torch.randperm(n, generator=_draws(seed, epoch))


def _draws(*entropy: int) -> torch.Generator:
    mixed = np.random.SeedSequence(entropy).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def grouped(order: Tensor, lengths: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
    """Regroup an epoch's order (n,) so that rows of similar length share a batch.

    The rows of every `POOL` consecutive batches are sorted by length and cut into batches, whose
    order is drawn. So each row is seen once per epoch and the batches come at random, but which
    rows share a batch depends on their lengths. The last, short batch stays last.
    """
    whole = len(order) - len(order) % batch_size
    parts = []
    for pool in torch.split(order[:whole], POOL * batch_size):
        batches = pool[torch.argsort(lengths[pool], stable=True)].view(-1, batch_size)
        parts.append(batches[torch.randperm(len(batches), generator=draws)].flatten())
    return torch.cat((*parts, order[whole:]))


class TrainOrder:
    """Decides which rows each optimisation step sees. Its only state is a cache: a resumed run
    needs only the step's number."""

    def __init__(self, n: int, batch_size: int, seed: int, group_by: Tensor | None = None) -> None:
        """Order n rows in batches of `batch_size`, shuffled anew in each epoch.

        Args:
            group_by: (n,) lengths to group rows by; None: batches are drawn at random.
        """
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.group_by = group_by
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Return the rows of a step, counted over all epochs: (batch_size,) int64, fewer in the
        last batch of an epoch."""
        epoch, batch = divmod(step, steps_per_epoch(self.n, self.batch_size))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.n, self.seed, epoch)
            if self.group_by is not None:
                draws = _draws(self.seed, epoch, 1)
                self._order = grouped(self._order, self.group_by, self.batch_size, draws)
        return self._order[batch * self.batch_size : (batch + 1) * self.batch_size]


def padded_width(length: int, longest: int) -> int:
    """Return the tokens to pad a batch to on a GPU: few widths, since each needs its own graph.

    The width is a multiple of 8 up to 64, of 16 up to 128 and of 32 above, but at most `longest`,
    the longest row of the split.
    """
    unit = 8 if length <= 64 else 16 if length <= 128 else 32
    return min(-(-length // unit) * unit, longest)


class Feed:
    """Makes training batches on the device, which holds the whole split: 4 bytes per token.

    Packed batches, and those whose tokens are predicted, are made on the CPU.
    """

    def __init__(self, split: TokenisedSplit, device: torch.device) -> None:
        self.lengths = split.lengths
        self.split = split.to(device)
        self.device = device
        self.longest = int(self.lengths.max())
        self.counts = split.counts

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the batch of the rows `indices` (b,), which are on the CPU.

        Returns:
            What `TokenisedSplit.batch` or `token_batch` returns, and `count` () on the CPU unless
            each row counts 1.
        """
        width = int(self.lengths[indices].max())
        if self.device.type == "cuda":
            width = padded_width(width, self.longest)
        if self.split.made_on_cpu:
            batch = token_batch(self.split, indices, width, self.device)
        else:
            batch = self.split.batch(indices.to(self.device, non_blocking=True), width)
        if self.counts is not None:
            batch["count"] = self.counts[indices].sum()
        return batch


def largest_batch(split: TokenisedSplit, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Return the longest rows as one training batch, on the CPU, in its sizes on `device`."""
    longest = torch.argsort(split.lengths, descending=True, stable=True)[:rows]
    width = int(split.lengths[longest[0]])
    if not split.made_on_cpu:
        return split.batch(longest, width)
    return collate(split, longest, width, fixed=device.type == "cuda")


def evaluation_order(split: TokenisedSplit, batch_size: int) -> list[Tensor]:
    """Return batches of row indices, each (b,) int64, with every row once, longest rows first.

    Rows of similar length share a batch, so that there is little padding; memory peaks at the
    start. Batches of rows whose tokens are predicted have `EVALUATED_TOKENS` at most, unless one
    row has more: a row of a language model is as long as many of a classifier.
    """
    order = torch.argsort(split.lengths, descending=True, stable=True)
    if split.counted is None:
        return list(torch.split(order, batch_size))
    batches, lengths, start = [], split.lengths[order].tolist(), 0
    while start < len(order):
        rows = min(batch_size, max(1, EVALUATED_TOKENS // lengths[start]))
        batches.append(order[start : start + rows])
        start += rows
    return batches
