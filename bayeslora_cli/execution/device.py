"""Where and how precisely to compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bayeslora_cli.errors import BayesloraError, UserError


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; auto: the first GPU if there is one.

    Raises:
        UserError: no such device.
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
    if device.index is not None:  # where kernels of Triton are launched
        torch.cuda.set_device(device)
    return device


def set_precision(precision: str, *, deterministic: bool = False) -> None:
    """fp32 means fp32: matrix products use TF32 under `tf32` alone.

    Args:
        deterministic: a GPU, too, gives the same bits for the same numbers at every repetition.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def memory_explained() -> Iterator[None]:
    """Say what to lower if a GPU's memory is not enough for a training.

    Raises:
        BayesloraError: it was not.
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
    """Whether a GPU's memory was not enough, then or in what was being dealt with."""
    if error is None:
        return False
    said = "ALLOC_FAILED" in str(error)  # cuBLAS says it in words
    return isinstance(error, torch.OutOfMemoryError) or said or is_out_of_memory(error.__context__)


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
