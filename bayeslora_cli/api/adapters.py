"""`cut_adapter`: a LoRA adapter from elsewhere at fewer ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayeslora_cli.errors import UserError


def is_adapter(path: Path) -> bool:
    """Return whether a directory is an adapter of PEFT's, and no run."""
    return (path / "adapter_config.json").is_file() and not (path / "config.toml").is_file()


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
