"""A run's splits on a device: training rows to draw from, evaluation rows in fixed batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed, evaluation_order, padded_width
from bayeslora_cli.data.packing import rows_of, token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit, row_sums
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.models.backbones.fingerprint import data_fingerprint
from bayeslora_cli.models.backbones.input_limits import check_ids

FEW = 8
"""Rows in `Batches.few` of packed splits whose tokens are predicted."""


class Batches:
    """A split in batches on a device, collated and moved once for any number of passes.

    With N processes each process holds every N-th batch.
    """

    def __init__(
        self,
        split: TokenisedSplit,
        batch_size: int,
        device: torch.device,
        processes: Processes = SINGLE,
    ) -> None:
        order = evaluation_order(split, batch_size)
        longest = int(split.lengths.max())
        self.labels = split.labels
        self.cells = split.cells
        self.total = len(split)
        """Number of rows of the split, or of items (`TokenisedSplit.items`), in the batches of all
        processes."""
        self.processes = processes
        self.rounds = -(-len(order) // processes.world)
        """Number of batches of the process that has the most."""
        whole, order = order, order[processes.rank :: processes.world]
        predicted = order
        if split.items is not None:
            self.total, predicted = _items(split, order)
        self.rows = torch.cat((*predicted, torch.empty(0, dtype=torch.int64)))
        """int64: index in the split of each row of the concatenated batches, or of each item."""
        self.sizes = [len(indices) for indices in predicted]
        """Number of rows, or of items, of each batch."""

        def width(indices: Tensor) -> int:
            own = int(split.lengths[indices].max())
            return padded_width(own, longest) if device.type == "cuda" else own

        def collate(indices: Tensor) -> dict[str, Tensor]:
            if split.made_on_cpu:
                return token_batch(split, indices, width(indices), device)
            return split.batch(indices, width(indices))

        def moved(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.to(device) for name, x in batch.items() if name != "labels"}

        self.inputs = [moved(collate(indices)) for indices in order]
        self.spare = self.inputs[0] if order else moved(collate(whole[0]))
        """A batch for rounds in which this process has none, but has to take part."""
        self.few = self.inputs[:1]
        """The first batch, or a few of its rows, padded as other programs take them; [] if this
        process has no batch."""
        if split.packed and order:
            self.few = [moved(split.batch(_few(split, order[0])))]
        most = [rows_of(batch, items=split.items is not None) for batch in self.inputs]
        self.most = max(most, default=0)
        """Most rows or items of a batch, those included that only fill it."""
        self.place = torch.empty(0, device=device)
        """(b, outputs): buffer for what a pass keeps, the same in all passes."""


def _items(split: TokenisedSplit, order: Sequence[Tensor]) -> tuple[int, list[Tensor]]:
    """Return the number of items of a split, and the indices of those of each batch of rows."""
    assert split.counted is not None
    words = row_sums(split.counted, split.offsets)
    total = int(words.sum())
    of_rows = torch.split(torch.arange(total), words.tolist())
    return total, [torch.cat([of_rows[row] for row in rows.tolist()]) for rows in order]


def _few(split: TokenisedSplit, rows: Tensor) -> Tensor:
    """Return the first rows of a batch, or all where a row is predicted as a whole."""
    if split.counted is None:
        return rows
    # the longest rows come first, and of rows that were cut the answer may be gone
    empty = row_sums(split.counted, split.offsets)[rows] == 0
    return rows[empty.int().argsort(stable=True)][:FEW]


class Data:
    """A run's tokenised rows on a device."""

    def __init__(
        self,
        config: RunConfig,
        splits: Mapping[str, TokenisedSplit],
        device: torch.device,
        processes: Processes = SINGLE,
    ) -> None:
        """`splits`: by name, `train` and those to evaluate on."""
        self.fingerprint = tokens_fingerprint(splits.values())
        train = splits["train"]
        self.training_rows = len(train)
        self.feed = Feed(train, device)
        self.splits = {
            name: Batches(split, config.eval_batch_size, device, processes)
            for name, split in splits.items()
            if name != "train"
        }


def check_tokens(module: Any, model: str, splits: Iterable[TokenisedSplit]) -> None:
    """Refuse rows with tokens for which the backbone's embeddings have no row.

    Args:
        model: the backbone's name, as the user gave it.
    Raises:
        ModelError: raised by `check_ids`.
    """
    for split in splits:
        check_ids(module, model, split.tokens, split.pad_id, split.token_types)


def tokens_fingerprint(splits: Iterable[TokenisedSplit]) -> str:
    """Compute a checksum of the tokens and labels of splits."""
    return data_fingerprint(
        tensor
        for split in splits
        for tensor in (
            split.tokens,
            split.offsets,
            split.token_types,
            split.labels,
            split.counted,
            split.cells,
            split.items,
            split.parts,
        )
    )


def truncation_notice(splits: Mapping[str, TokenisedSplit], max_length: int) -> str | None:
    """Write a sentence on how many examples of which splits were truncated; None: none was."""
    cut = {name: (*split.truncated(), split.examples()) for name, split in splits.items()}
    parts = [f"{rows:,} of {n:,} rows of {name}" for name, (rows, _, n) in cut.items() if rows]
    if not parts:
        return None
    longest = max(tokens for rows, tokens, _ in cut.values() if rows)
    return (
        f"{' and '.join(parts)} are longer than --max-length {max_length} and are cut there; the "
        f"longest has {longest:,} tokens"
    )
