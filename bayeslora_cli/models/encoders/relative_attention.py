"""DeBERTa-v2/v3's disentangled attention (He et al., ICLR 2021), in a form a graph can capture.

transformers copies scalars from the host to find the relative positions, projects all of them for
every example, and gathers from the result, whose backward pass is an atomic scatter. This version
neither reads from nor copies from the host, projects only the positions that the length can reach,
once per batch, and gathers by a shift of memory. The results differ only by rounding.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora_cli.models.adapters.layer import JointLinear
from bayeslora_cli.models.encoders.packed_rows import Rows
from bayeslora_cli.models.encoders.relative_positions import nearest, position_rows
from bayeslora_cli.models.kernels.position_bias import position_bias, skew
from bayeslora_cli.models.kernels.row_attention import row_attention as kernel
from bayeslora_cli.models.kernels.row_attention.joint import joint_row_attention
from bayeslora_cli.models.packed.layout import places_back, places_of, row_lengths, similar_rows

# tokens from which a GPU's fused attention is used: plain attention keeps three tensors of
# (batch, heads, L, L) for its backward pass, the fused one keeps only the position bias
FUSED_FROM = 128
# pairs of places, of all heads, that a CPU computes in the time that a further group of rows takes
JOINED = 2**16
HAVE_TRITON = find_spec("triton") is not None


def _position_bias(c2p: Tensor, p2c: Tensor) -> Tensor:
    if HAVE_TRITON and c2p.is_cuda:
        from bayeslora_cli.models.kernels import position_bias_triton

        found: Tensor = position_bias_triton.position_bias(c2p, p2c)
        return found
    return position_bias(c2p, p2c)


def _is_worth_fusing(query: Tensor, length: int) -> bool:
    return query.is_cuda and length >= FUSED_FROM


class RelativeAttention(nn.Module):
    """Disentangled self-attention that keeps the child modules of the module it replaces.

    score[i, j] = (q_i k_j + q_i K[i - j] + k_j Q[i - j]) / sqrt(d n), where K and Q are projected
    relative embeddings (c2p and p2c, each optional) and n counts the terms.
    """

    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module
    pos_query_proj: nn.Module  # only if query_proj is not shared
    pos_key_proj: nn.Module  # likewise
    pos_dropout: nn.Module
    dropout: nn.Dropout
    rows: Tensor

    def __init__(self, original: Any, max_length: int | None) -> None:
        """`original`: transformers' module; see `replace_attention` for `max_length`."""
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        self.training = original.training
        self.heads: int = original.num_attention_heads
        self.size: int = original.attention_head_size
        self.shared = bool(original.share_att_key)
        self.c2p = "c2p" in original.pos_att_type
        self.p2c = "p2c" in original.pos_att_type
        terms = 1 + self.c2p + self.p2c
        # transformers takes the root in fp32 whatever the precision
        root = torch.tensor(original.attention_head_size * terms, dtype=torch.float32, device="cpu")
        self.scale = 1 / root.sqrt().item()
        self.buckets = (
            original.pos_ebd_size, original.position_buckets, original.max_relative_positions,
        )  # fmt: skip
        self.register_buffer("rows", torch.empty(0, dtype=torch.long), persistent=False)
        self.joint: JointLinear | None = None
        """Computes queries, keys and values in one product; None: three products do."""
        self.seed: Tensor | None = None
        """Of the kernel's dropout, (1,), drawn for each pass; None: the kernel draws one."""
        self._reach(kernel.reach_of(max_length or original.max_relative_positions))

    def _reach(self, length: int) -> None:
        """Build the table of rows for up to `length` tokens."""
        rows = position_rows(length, *self.buckets)
        steps = rows.diff().tolist()  # steps[length + r]: from position r to r + 1
        plain = 0
        while plain < length and steps[length - plain - 1] == 1 == steps[length + plain - 1]:
            plain += 1
        self.reach = length
        self.plain = plain  # number of tokens up to which the rows are consecutive
        # the bias's: of a weight that was quantized while it was read, only the shape is left here
        self.rows = rows.to(list(self.query_proj.parameters())[-1].device)

    def _embeddings(self, relative: Tensor, length: int) -> Tensor:
        """Select and drop out embeddings of positions -L ... L - 1: (rows, hidden) -> (2L, hidden).

        Position -L cannot occur; it gives the products' rows an even length and aligned memory.
        Repeated rows are repeated here, where the backbone is frozen, rather than after the
        projection, where their gradients would have to be summed.
        """
        if length > self.reach:
            self._reach(length)
        if length <= self.plain:
            first = self.buckets[0] - length
            dropped: Tensor = self.pos_dropout(relative[first : first + 2 * length])
            return dropped
        window = self.rows[self.reach - length : self.reach + length]
        return F.embedding(window, self.pos_dropout(relative))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | Rows,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Compute attention; arguments as in transformers, the mask as `_pairs` returns it.

        Returns:
            (batch, L, heads * d), and no attention matrix.
        """
        assert not output_attentions, "no attention matrices from here"
        assert query_states is None, "queries and keys are the same tokens"
        assert relative_pos is None, "positions are this module's own"
        assert rel_embeddings is not None
        content = hidden_states.flatten(0, 1)  # (B L, hidden)
        if isinstance(attention_mask, tuple):
            return self._of_rows(content, rel_embeddings, attention_mask).unsqueeze(0), None
        length = hidden_states.shape[1]
        query, key, value, query_rows, key_rows = self._projections(
            content, self._embeddings(rel_embeddings, length)
        )
        blocked = ~attention_mask.bool().transpose(0, 1)
        return self._attend(query, key, value, query_rows, key_rows, length, blocked), None

    def _of_rows(self, content: Tensor, rel_embeddings: Tensor, rows: Rows) -> Tensor:
        """Compute attention within packed rows: (t, hidden) -> (t, heads * d).

        A CPU pads neighbouring rows of similar length to the longest of them, for the attention
        only; a GPU has a kernel, or pads all rows to the longest.
        """
        offsets, longest = rows
        if longest is not None and self._has_kernel(content):
            return self._by_kernel(content, rel_embeddings, offsets, longest.shape[1])
        lengths = row_lengths(offsets) if longest is None else []
        length = max(lengths) if longest is None else longest.shape[1]
        query, key, value, query_rows, key_rows = self._projections(
            content, self._embeddings(rel_embeddings, length)
        )
        if longest is not None:
            return self._padded(query, key, value, query_rows, key_rows, offsets, length)
        groups = similar_rows(lengths, JOINED // self.heads)
        sizes = [sum(group) for group in groups]
        parts = zip(*(torch.split(x, sizes, 1) for x in (query, key, value)), strict=True)
        found = []
        for group, (q, k, v) in zip(groups, parts, strict=True):
            n = group[0]
            q_rows, k_rows = nearest(query_rows, n), nearest(key_rows, n)
            if min(group) == n:
                found.append(self._attend(q, k, v, q_rows, k_rows, n).flatten(0, 1))
            else:
                starts = torch.tensor([0, *group]).cumsum(0)
                found.append(self._padded(q, k, v, q_rows, k_rows, starts, n))
        return torch.cat(found)

    def _padded(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rows: Tensor | None,
        key_rows: Tensor | None,
        offsets: Tensor,
        length: int,
    ) -> Tensor:
        """Compute attention of rows padded to `length`: (heads, t, d) -> (t, heads * d).

        Args:
            query_rows, key_rows: (2 length, heads * d), of the positions.
            offsets: where the rows begin (rows + 1,), and where the last ends.
        """
        tokens = query.shape[1]
        places, inside = places_of(offsets, tokens, length)
        q, k, v = (x.index_select(1, places.flatten()) for x in (query, key, value))
        blocked = ~(inside[:, None, :] & inside[:, :, None])
        out = self._attend(q, k, v, query_rows, key_rows, length, blocked[None])
        return out.flatten(0, 1).index_select(0, places_back(offsets, tokens, length))

    def _has_kernel(self, content: Tensor) -> bool:
        return self.c2p and self.p2c and kernel.has_kernel(content, self.size)

    def _by_kernel(
        self, content: Tensor, rel_embeddings: Tensor, offsets: Tensor, longest: int
    ) -> Tensor:
        """Compute attention within packed rows in one kernel: (t, hidden) -> (t, heads * d)."""
        reach = kernel.reach_of(longest)
        drop = self.dropout.p if self.training else 0.0
        options: dict[str, Any] = {"scaling": self.scale, "dropout": drop, "seed": self.seed}
        embeddings = self._embeddings(rel_embeddings, reach)
        if self.shared and self.joint is not None and self.joint.computes_all:
            joint = self.joint.whole(torch.cat((content, embeddings)))
            joint = joint.view(len(joint), 3, self.heads, -1)
            return joint_row_attention(joint, offsets, reach, **options).flatten(1)
        query, key, value, query_rows, key_rows = self._products(content, embeddings)
        if query_rows is not None and key_rows is not None:
            query, key = torch.cat((query, query_rows)), torch.cat((key, key_rows))
        query, key, value = (x.view(len(x), self.heads, -1) for x in (query, key, value))
        out = kernel.relative_row_attention(
            query, key, value[: len(content)], offsets, reach, **options
        )
        return out.flatten(1)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rows: Tensor | None,
        key_rows: Tensor | None,
        length: int,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Compute attention of padded rows: (heads, B L, d) -> (B, L, heads * d).

        Args:
            query_rows, key_rows: (2L, heads * d), of the positions.
            length: L.
            blocked: bool (1, B, L, L): whether a query does not see a key; None: all are seen.
        """
        fused = _is_worth_fusing(query, length)
        if not fused:  # bmm needs contiguous operands
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()

        bias = self._bias(query, key, query_rows, key_rows, length)

        shape = (self.heads, -1, length, query.shape[2])
        query, key, value = query.view(shape), key.view(shape), value.view(shape)
        attend = self._fused if fused else self._plain
        return attend(query, key, value, bias, blocked)

    def _projections(
        self, content: Tensor, embeddings: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute q, k, v (heads, B L, d), and q and k of the positions (2L, heads * d)."""
        query, key, value, query_rows, key_rows = self._products(content, embeddings)
        count = len(content)
        if self.shared:
            query_rows, key_rows = query[count:], key[count:]
        return (
            self._split_heads(query[:count]),
            self._split_heads(key[:count]),
            self._split_heads(value[:count]),
            query_rows if self.p2c else None,
            key_rows if self.c2p else None,
        )

    def _products(
        self, content: Tensor, embeddings: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Compute q, k, v (n, heads * d), and q and k of the positions (2L, heads * d).

        If the projections are shared, n counts the positions too, behind the tokens, and the last
        two are None.
        """
        # one call for both: an adapter's kernels run once, and its gradients need not be added
        rows = torch.cat((content, embeddings)) if self.shared else content
        if self.joint is not None and self.joint.computes_all:
            query, key, value = self.joint(rows)
        else:
            query, key = self.query_proj(rows), self.key_proj(rows)
            value = self.value_proj(content)
        query_rows = key_rows = None
        if not self.shared:
            query_rows = self.pos_query_proj(embeddings) if self.p2c else None
            key_rows = self.pos_key_proj(embeddings) if self.c2p else None
        return query, key, value, query_rows, key_rows

    def _bias(
        self,
        query: Tensor,
        key: Tensor,
        query_rows: Tensor | None,
        key_rows: Tensor | None,
        length: int,
    ) -> Tensor | None:
        """Return the position bias of the scores: (heads, B, L, L)."""
        c2p = p2c = None
        square = (self.heads, -1, length, 2 * length)
        if key_rows is not None:
            # from the largest position to the smallest: column c is position L - 1 - c
            c2p = (query @ self._split_heads(key_rows.flip(0)).mT).view(square)
        if query_rows is not None:
            p2c = (key @ self._split_heads(query_rows).mT).view(square)  # c is position c - L
        if c2p is not None and p2c is not None:
            return _position_bias(c2p, p2c)
        if c2p is not None:
            return skew(c2p, length - 1)
        return None if p2c is None else skew(p2c, length).mT

    def _split_heads(self, x: Tensor) -> Tensor:
        """Split into heads: (n, heads * d) -> (heads, n, d), no copy."""
        return x.view(len(x), self.heads, -1).transpose(0, 1)

    def _plain(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        """Compute attention by separate products: (heads, B, L, d) -> (B, L, heads * d)."""
        scores = (query.flatten(0, 1) @ key.flatten(0, 1).mT).view(*query.shape[:3], -1)
        if bias is not None:
            scores = scores + bias
        # a fully blocked row is uniform, padding included, as in transformers
        scores = scores * self.scale
        if blocked is not None:
            scores = scores.masked_fill(blocked, torch.finfo(scores.dtype).min)
        weights: Tensor = self.dropout(scores.softmax(-1))
        context = (weights.flatten(0, 1) @ value.flatten(0, 1)).view(query.shape)
        return context.permute(1, 2, 0, 3).flatten(2)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        """Compute the same by torch's fused attention, with the bias as its mask."""
        bias = query.new_zeros(()) if bias is None else bias * self.scale
        assert blocked is not None
        mask = bias.masked_fill(blocked, torch.finfo(query.dtype).min)
        context = F.scaled_dot_product_attention(
            query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1),
            attn_mask=mask.transpose(0, 1), scale=self.scale,
            dropout_p=self.dropout.p if self.training else 0.0,
        )  # fmt: skip
        return context.transpose(1, 2).flatten(2)
