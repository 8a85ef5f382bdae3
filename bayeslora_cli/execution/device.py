"""The device of a run, the precision of its products, and its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bayeslora_cli.errors import BayesloraError, UserError


def pick_device(name: str) -> torch.device:
    """Return the device that `--device` names; auto: the first GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: use cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    if device.index is not None:  # Triton launches its kernels on the current device
        torch.cuda.set_device(device)
    return device


def is_cpu(name: str) -> bool:
    """Return whether `--device` names the CPU; no GPU is touched."""
    return name == "cpu" or (name == "auto" and not torch.cuda.is_available())


def set_precision(precision: str, *, deterministic: bool = False) -> None:
    """Set how torch computes matrix products: in TF32 only if `precision` is `tf32`.

    Args:
        deterministic: whether a GPU must give the same bits every time.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # else torch fills each new tensor with NaN first; no result here depends on unwritten memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def memory_explained() -> Iterator[None]:
    """Explain an out-of-memory error inside this block: the message names what to lower.

    Raises:
        BayesloraError: instead of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise BayesloraError(
            "out of GPU memory. The same command goes on from the last checkpoint with --eager (no "
            "memory for CUDA graphs), with --gradient-checkpointing, or in an evaluation with a "
            "lower --eval-batch-size. Another run needs less with more --grad-accum, a lower "
            "--batch-size or --max-length, or --precision bf16"
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or an error in its context, means that a GPU is out of memory."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):  # torch, cuBLAS
        return True
    return is_out_of_memory(error.__context__)


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: of torch's allocator on a GPU, resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
