"""Fewer ranks without training: `cut_table` of a run, `cut_adapter` of a foreign adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayeslora_cli.api.arguments import sampling_of
from bayeslora_cli.config.files.start_sources import ADAPTER, kind_of_source
from bayeslora_cli.errors import UserError


def cut_table(
    path: str | Path, ranks: Sequence[float], by: Sequence[str] = (), *,
    samples: int | None = None, temperature: float | None = None, seed: int | None = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Cut a run to each of some mean ranks and measure it, at the posterior's mean.

    Args:
        ranks: mean number of ranks that a matrix keeps.
        by: singular-values, or names of criteria; (): the run's own criterion and singular-values.
        samples, temperature, seed: measure also over samples of the posterior, as `Run.evaluate`;
            not where singular values are cut.
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
    sampling = sampling_of(samples, temperature, seed)
    return evaluate_cuts(
        CutRequest(path=Path(path), ranks=tuple(ranks), by=tuple(by), sampling=sampling, **options)
    )


def is_adapter(path: Path) -> bool:
    """Return whether a directory is an adapter of PEFT's, and no run."""
    return kind_of_source(str(path)) == ADAPTER


def cut_adapter(
    directory: str | Path, target_rank: int, output: str | Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Cut a LoRA or AdaLoRA adapter of PEFT's by the singular values of its products.

    No model is loaded. See `export.cut_adapter.cut_adapter` for the result.

    Args:
        target_rank: mean number of ranks that a matrix keeps.
        output: the directory to write a LoRA adapter to.
        overwrite: replace an adapter there.
    Raises:
        UserError: the adapter cannot be read, or `output` cannot be written.
    """
    from bayeslora_cli.export import cut_adapter as module

    if target_rank < 1:
        raise UserError(f"--target-rank {target_rank}: must be at least 1")
    return module.cut_adapter(Path(directory), target_rank, Path(output), overwrite=overwrite)
