"""Prunes a finished run further, by its stored scores, without training."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.methods.adalora.rank_allocator import largest
from bayeslora_cli.methods.network import Network
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport


def prune(run: RunDir, network: Network, target_rank: int, *, in_all: bool = False) -> Tensor:
    """Return the mask (n, r) of the `target_rank` * n best triplets that the run kept.

    The scores are those that the run saved for the state in its posterior file.

    Args:
        in_all: `target_rank` is the number of triplets of all n matrices.
    Raises:
        UserError: the run kept fewer triplets, or its scores belong to another network.
    """
    report = RankReport.from_json(run.read_json(run.ranks), str(run.ranks))
    mask = network.bank.mask
    kept, n = int(mask.sum()), len(mask)
    wanted = target_rank * (1 if in_all else n)
    if wanted > kept:
        raise UserError(
            f"--target-rank {target_rank}: {target_rank} x {n} matrices are {wanted} triplets, "
            f"the run kept {kept}; give {kept // n} or less"
        )
    if [m.name for m in report.matrices] != list(network.adapters):
        raise RunDirError(f"{run.ranks} belongs to another model or other target modules")
    rows = [m.scores for m in report.matrices]
    if any(row is None or len(row) != mask.shape[1] for row in rows):
        raise RunDirError(f"{run.ranks} lacks a score for each triplet: it cannot be pruned by")
    scores = torch.tensor(rows, device=mask.device).masked_fill(mask == 0, -torch.inf)
    return largest(scores, wanted)
