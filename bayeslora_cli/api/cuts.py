"""`cut_table`: metrics of a finished run at fewer ranks, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import UserError


def cut_table(
    path: str | Path, ranks: Sequence[float], by: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """Cut a run to each of some mean ranks and measure it, at the posterior's mean.

    Args:
        ranks: mean number of ranks that a matrix keeps.
        by: singular-values, or names of criteria; (): the run's own criterion and singular-values.
        options: the other fields of `evaluation.cutting.cut_table.CutRequest`: split, data, file,
            batch_size, device, model, trust_remote_code, verify.
    Returns:
        What `evaluate_cuts` there returns.
    Raises:
        UserError: the run cannot be cut so, or data or model is missing.
    """
    from bayeslora_cli.evaluation.cutting.cut_table import CutRequest, evaluate_cuts

    if not ranks or any(not 0 <= rank < 1e6 for rank in ranks):
        raise UserError("--cut: give mean ranks of 0 or more, such as 2,1,0.5")
    return evaluate_cuts(CutRequest(path=Path(path), ranks=tuple(ranks), by=tuple(by), **options))
