"""Cheap checksums: of pretrained weights, to tell one checkpoint from another, and of data."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor

SAMPLES = 1024  # values of a tensor that count; every fine-tuning moves nearly all of them


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """sha256 over the shapes and `SAMPLES` evenly spaced values, in fp32, of each tensor.

    Neither order nor names count: another version of a library may change both. Two checkpoints
    that differ at none of the sampled places are not told apart.
    """
    parts = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)].to("cpu", torch.float32)
        values = sample.contiguous().numpy().astype("<f4").tobytes()
        parts.append(sha256(f"{list(tensor.shape)}".encode() + values).digest())
    return sha256(b"".join(sorted(parts))).hexdigest()


def data_fingerprint(tensors: Iterable[Tensor | None]) -> str:
    """sha256 over types, shapes and all bytes, in order: 1 GB/s or so."""
    digest = sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
