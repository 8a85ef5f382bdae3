"""MPNet's packed rows: its encoder makes one bias of the scores, by relative position, for all
blocks; their own attention adds it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayeslora_cli.models.encoders.packed_rows import Rows, present_batch
from bayeslora_cli.models.encoders.row_attention import row_attention
from bayeslora_cli.models.packed.layout import row_lengths


def attend_by_rows(module: nn.Module) -> None:
    """Have an MPNet attend by row offsets where a batch has them, in place."""
    for part in list(module.modules()):
        for mixin, name in ((_Biases, "MPNetEncoder"), (_Attention, "MPNetSelfAttention")):
            if type(part).__name__ == name:
                part.__class__ = type(f"Packed{name}", (mixin, type(part)), {})


class _Biases:
    """Of a packed batch the encoder makes the bias of its longest row, with its `Rows`."""

    def compute_position_bias(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return the bias (b, heads, w, w); of packed rows (`Rows`, bias of the longest row)."""
        maker: Any = super()
        batch = present_batch()
        if batch is None:
            return maker.compute_position_bias(x, *args, **options)
        offsets, longest = batch.rows
        length = max(row_lengths(offsets)) if longest is None else longest.shape[1]
        # only the size and the place of its argument count
        return batch.rows, maker.compute_position_bias(x.new_empty(1, length, 1))


class _Attention:
    """A block's attention; arguments as in transformers."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    dropout: nn.Dropout
    attention_head_size: int
    training: bool

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | tuple[Rows, Tensor] | None = None,
        output_attentions: bool = False,
        **others: Any,
    ) -> Any:
        if not isinstance(position_bias, tuple):
            plain: Any = super()
            return plain.forward(
                hidden_states, attention_mask, position_bias, output_attentions, **others
            )
        rows, bias = position_bias
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (
            part(hidden_states).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        dropout = self.dropout.p if self.training else 0.0
        out = row_attention(query, key, value, rows, dropout=dropout, bias=bias)
        return (self.o(out.flatten(2)),)
