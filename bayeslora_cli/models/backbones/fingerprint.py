"""Cheap checksums of pretrained weights, which tell checkpoints apart, and of data."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor

SAMPLES = 1024  # values read per tensor; every fine-tuning changes nearly all of them


def fingerprint(tensors: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> str:
    """Compute sha256 over the shape and `SAMPLES` evenly spaced values of each tensor.

    The values are rounded to `dtype`, so that tensors that were read in that type or a wider one
    get the same checksum.

    Order and names are ignored, because another version of a library may change both. Two
    checkpoints that agree at all sampled places get the same checksum.
    """
    return combined(digest(tensor, dtype) for tensor in tensors)


def digest(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """Compute the part of a `fingerprint` that is one tensor's."""
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLES)].to("cpu", dtype).float()
    values = sample.contiguous().numpy().astype("<f4").tobytes()
    return sha256(f"{list(tensor.shape)}".encode() + values).digest()


def combined(digests: Iterable[bytes]) -> str:
    """Combine the parts of all tensors into a `fingerprint`."""
    return sha256(b"".join(sorted(digests))).hexdigest()


def data_fingerprint(tensors: Iterable[Tensor | None]) -> str:
    """Compute sha256 over types, shapes and all bytes, in order, at about 1 GB/s."""
    digest = sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
