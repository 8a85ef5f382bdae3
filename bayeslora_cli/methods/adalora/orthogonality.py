"""AdaLoRA's orthogonality penalty, computed from one batched Gram matrix per shape group."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora_cli.models.adapters.bank import AdapterBank

PIECE = 64
"""Elements summed at a time in a product of few, long rows; more if there are too many products."""
MOST = 2**16 - 1
"""Products of a batch that all GPUs compute: some of cuBLAS's kernels leave out those behind
(pytorch's issue 25241). Llama-3.3-70B's gate and up projections would make 71,680."""


def orthogonality(bank: AdapterBank, weight: float) -> Tensor:
    """Add the penalty's gradient at theta to `bank.local`; return its value, weight included.

    R = weight * mean over all A and B of ||A A' - I||_F, ||B' B - I||_F: the norm itself, not its
    square, pruned triplets included (AdaLoRA, eq. 4, as PEFT computes it). With G = A A' - I the
    gradient is 2 G A / ||G||_F, and 0 where the norm is 0. Everything is computed in fp32.

    Returns:
        The penalty, a scalar tensor.
    """
    identity = torch.eye(bank.rank, device=bank.theta.device)
    norms = []
    share = weight / (2 * len(bank.matrices))
    for group in bank.groups:
        a, b = group.view_a(bank.theta), group.view_b(bank.theta)
        grad_a, grad_b = group.view_a(bank.local), group.view_b(bank.local)
        for rows, grad in ((a, grad_a), (b.mT, grad_b.mT)):  # (G, r, in), (G, r, out)
            gram = _gram(rows) - identity  # (G, r, r)
            norm = torch.linalg.matrix_norm(gram)  # (G,)
            slope = gram * torch.where(norm > 0, 2 * share / norm, 0)[:, None, None]
            grad.add_(slope @ rows)
            norms.append(norm)
    return torch.cat(norms).sum() * share


def _gram(rows: Tensor) -> Tensor:
    """Compute rows rows', (G, r, n) -> (G, r, r), summed in pieces.

    Without pieces, a GPU would compute each matrix by a single block of threads.
    """
    count, rank, length = rows.shape
    piece = PIECE
    while count * length > MOST * piece:
        piece *= 2
    if length % piece:
        return rows @ rows.mT
    pieces = rows.reshape(count, rank, -1, piece).transpose(1, 2)  # (G, n / piece, r, piece)
    return (pieces @ pieces.mT).sum(1)
