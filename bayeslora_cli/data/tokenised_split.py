"""`TokenisedSplit`: the tokens of a split, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeslora_cli.tasks.objectives.objective import Objective


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenisedSplit:
    """The tokens of n rows, concatenated without padding, on the CPU until `to` moves them."""

    tokens: Tensor
    """(t,) int32: every row's token ids, concatenated."""
    offsets: Tensor
    """(n + 1,) int64: row i is `tokens[offsets[i]:offsets[i + 1]]`."""
    token_types: Tensor | None
    """(t,) int8: segment ids alongside `tokens`; None when the tokenizer makes none."""
    labels: Tensor | None
    """(n, ...) as `Objective.label_tensor` makes them; None when the split has no labels."""
    pad_id: int
    """Token id used for padding."""
    pad_type_id: int = 0
    """Segment id used for padding."""
    counts: Tensor | None = None
    """(n,) int64, `Objective.counts`; always on the CPU."""
    whole: Tensor | None = None
    """(n,) int64: number of tokens of each row before truncation, estimated for rows of many
    thousand characters; always on the CPU."""
    counted: Tensor | None = None
    """(t,) bool alongside `tokens`: whether the loss counts the prediction of this token, which is
    never a row's first; None: the kind of task predicts no tokens. Always on the CPU."""
    scored: Tensor | None = None
    """(t, 2) int64 alongside `tokens`: the column of the row's outputs that a counted token belongs
    to, and how many places before it that stands which predicts it; None: 0 and 1. On the CPU."""
    packed: bool = False
    """Whether batches hold the rows one after the other (`packing.pack`) instead of padded."""
    cells: Tensor | None = None
    """(n, ...) int64, on the CPU: what each row belongs to, if examples, to which `labels` belong,
    have several rows, as `Objective.arranged` takes it; None: row i is example i."""
    tags: Tensor | None = None
    """(t,) int64 alongside `tokens`: what is predicted at a counted token itself, in place of the
    next token. On the CPU."""
    items: Tensor | None = None
    """(examples,) int64, on the CPU: number of predictions of each example, such as that of its
    words, of which `labels` then has a line each; None: one."""
    parts: Tensor | None = None
    """(n,) int64: number of sequences of each example, if rows are examples of several sequences
    each, which lie one after the other; None: a row is one sequence."""
    most_parts: int = 1
    """Largest of `parts`."""
    weights: Tensor | None = None
    """fp32: factor of each row's loss (n,), or of its terms (n, ...); if `tags` are predicted, of
    that of each token (t,); None: 1 each."""
    left_out: int = 0
    """Number of rows that were left out, as nothing of them counts in the loss."""

    def weighed(self, objective: Objective, weights: Sequence[float]) -> TokenisedSplit:
        """Return this training split with the factors in the loss that follow from its classes.

        Args:
            weights: of each class, as `Objective.class_weights` returns them.
        """
        truth = self.labels if self.tags is None else self.tags
        assert truth is not None
        return replace(self, weights=objective.loss_weights(torch.tensor([*weights]), truth))

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.parts is None else len(self.parts)

    def examples(self, rows: Tensor | None = None) -> int:
        """Count the examples to which rows (n,) bool belong, which may have several; None: all."""
        if self.cells is None:
            return len(self) if rows is None else int(rows.sum())
        return len(set((self.cells if rows is None else self.cells[rows])[:, 0].tolist()))

    def truncated(self) -> tuple[int, int]:
        """Return the number of examples that were cut, and the tokens of the longest row."""
        if self.whole is None:
            return 0, 0
        return self.examples(self.whole > self.lengths.cpu()), int(self.whole.max())

    @property
    def made_on_cpu(self) -> bool:
        """Whether `packing.token_batch` makes the batches, on the CPU, where sizes are known."""
        return self.packed or self.counted is not None

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row, or of its longest sequence: (n,) int64."""
        lengths = self.offsets.diff()
        return lengths if self.parts is None else longest_part(lengths, self.parts)

    def to(self, device: torch.device) -> TokenisedSplit:
        """Copy the split to a device; one that is `made_on_cpu` stays where it is."""
        if self.made_on_cpu:
            return self
        names = ("tokens", "offsets", "token_types", "labels", "parts", "weights")
        held = {n: x.to(device) for n in names if (x := getattr(self, n)) is not None}
        return replace(self, **held)

    def aims(self, places: Tensor, aims: Tensor) -> dict[str, Tensor]:
        """Return `predicting`, `targets` and the columns of `scored` for counted tokens, each (c,).

        `places` and `aims` (c,) are where they stand in `tokens` and in the flattened batch.
        """
        if self.tags is not None:
            found = {"predicting": aims, "targets": self.tags.index_select(0, places)}
            if self.weights is not None:
                found["weights"] = self.weights.index_select(0, places)
            return found
        # not `x[places]`, which starts all threads from 3,000 places on
        targets = self.tokens.index_select(0, places).long()
        if self.scored is None:
            return {"predicting": aims - 1, "targets": targets}
        columns, back = self.scored.index_select(0, places).unbind(1)
        return {"predicting": aims - back, "targets": targets, "columns": columns}

    def batch(self, indices: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """Return the rows `indices` (b,), padded on the right to `width`, or to the longest row.

        All tensors are on the split's device; with `width` the host reads nothing from it.

        Returns:
            `input_ids` and `attention_mask` (b, width) int64; `token_type_ids` (b, width) int64 and
            `labels` (b, ...) if there are any. If tokens are predicted, instead of labels
            `predicting` (c,), places in the flattened `input_ids` whose next token counts, and
            `targets` (c,), those next tokens, both int64.

            Of examples of several sequences `input_ids` and the like are (b, k, width), where k is
            `most_parts`, and `missing` (b, k) bool tells which sequences an example does not have;
            its first one stands in their places.
        """
        if self.parts is None:
            return self._padded(indices, width)
        parts = self.parts[indices, None]
        place = torch.arange(self.most_parts, device=parts.device)
        missing = place >= parts  # (b, k)
        first = (self.parts.cumsum(0) - self.parts)[indices, None]
        sequences = torch.where(missing, first, first + place).flatten()
        whole = replace(self, parts=None, labels=None, weights=None)._padded(sequences, width)
        batch = {name: value.view(*missing.shape, -1) for name, value in whole.items()}
        batch["missing"] = missing
        if self.labels is not None:
            batch["labels"] = self.labels[indices]
        return batch

    def _padded(self, indices: Tensor, width: int | None) -> dict[str, Tensor]:
        """Return a batch of sequences; see `batch`."""
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        columns = torch.arange(width or int(lengths.max()), device=lengths.device)
        inside = columns < lengths[:, None]  # (b, w)
        # a place beyond a row's end may lie beyond all tokens: read any token, it is overwritten
        places = torch.where(inside, starts[:, None] + columns, 0)
        batch = {
            "input_ids": torch.where(inside, self.tokens[places].long(), self.pad_id),
            "attention_mask": inside.long(),
        }
        if self.token_types is not None:
            batch["token_type_ids"] = torch.where(
                inside, self.token_types[places].long(), self.pad_type_id
            )
        if self.counted is not None:
            aims = (inside & self.counted[places]).flatten().nonzero().squeeze(1)
            batch |= self.aims(places.flatten()[aims], aims)
            return batch
        if self.labels is not None:
            batch["labels"] = self.labels[indices]
        if self.weights is not None:
            batch["weights"] = self.weights[indices]
        return batch


def longest_part(lengths: Tensor, parts: Tensor) -> Tensor:
    """Return the largest length of each row's parts: (n,)."""
    owner = torch.repeat_interleave(parts)
    return torch.zeros_like(parts).scatter_reduce(0, owner, lengths, "amax")


def row_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum values (t,) over each row: (n,) int64; row i begins at `offsets[i]`, (n + 1,)."""
    before = torch.cat((torch.zeros(1, dtype=torch.int64), values.long().cumsum(0)))
    return before[offsets].diff()
