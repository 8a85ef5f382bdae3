"""The posterior as a file and as a sampler.

The file holds mean and sigma of every kept element, and what the run drew itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.errors import RunDirError
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Segment

FORMAT = "bayeslora-posterior-1"


class BankedNetwork(Protocol):
    """What a posterior file needs of a network: `methods.network.Network` is one."""

    bank: AdapterBank
    drawn: dict[str, Tensor]
    """Frozen tensors that the checkpoint lacked and the run drew, by name."""

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace one of them."""


@dataclass(kw_only=True, slots=True)
class Posterior:
    """A factorised Gaussian over the bank's elements, or a point estimate."""

    mean: Tensor
    """(N,)."""
    sigma: Tensor | None
    """(N,); None for a point estimate."""
    mask: Tensor
    """Kept triplets (n, r), 0 or 1."""

    def apply(self, bank: AdapterBank) -> None:
        """Make this the bank's mean and mask."""
        bank.mean.copy_(self.mean)
        bank.mask.copy_(self.mask)

    def sample(self, bank: AdapterBank, generator: torch.Generator, temperature: float) -> Tensor:
        """theta ~ N(mean, temperature sigma^2): (N,), the E of pruned triplets being 0.

        Args:
            bank: of this posterior's network.
            generator: on the CPU: its noise is the same whatever device the posterior is on.
            temperature: a factor of the variance; 0 gives the mean.
        """
        assert self.sigma is not None, "a point estimate has nothing to sample"
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        theta = torch.addcmul(self.mean, noise, self.sigma, value=math.sqrt(temperature))
        if bank.has_singular_values:
            bank.singular_values(theta).mul_(self.mask)
        return theta


def _kept(bank: AdapterBank, segment: Segment, mask: Tensor) -> tuple[Tensor, int] | None:
    """Which rows (dim 0) or columns (dim 1) of an adapter's segment are kept; None: all."""
    name, _, part = segment.name.rpartition(".lora_")
    if segment.role != "adapter" or not bank.has_singular_values:
        return None
    index = next(i for i, m in enumerate(bank.matrices) if m.name == name)
    return mask[index].bool().cpu(), 1 if part == "B" else 0


def save(path: Path, network: BankedNetwork, posterior: Posterior) -> None:
    """Write the file; pruned triplets are left out, the mask says which.

    Tensors: kept (n, r) uint8; mean/NAME and sigma/NAME a parameter; drawn/NAME a frozen tensor
    that the backbone's checkpoint lacks.
    """
    bank = network.bank
    tensors = {"kept": posterior.mask.to("cpu", torch.uint8)}
    for kind, flat in (("mean", posterior.mean), ("sigma", posterior.sigma)):
        if flat is None:
            continue
        host = flat.cpu()
        for name, segment in bank.segments.items():
            value = segment.view(host)
            found = _kept(bank, segment, posterior.mask)
            if found is not None:
                kept, dim = found
                value = value[kept] if dim == 0 else value[:, kept]
            tensors[f"{kind}/{name}"] = value.clone().contiguous()
    tensors |= {f"drawn/{name}": value.cpu().contiguous() for name, value in network.drawn.items()}
    save_file(tensors, path, metadata={"format": FORMAT})


def _check_names(path: Path, found: set[str], network: BankedNetwork) -> None:
    """Whether the file has this network's tensors and no others, before any is read."""
    means = {f"mean/{name}" for name in network.bank.segments}
    sigmas = {f"sigma/{name}" for name in network.bank.segments}
    drawn = {f"drawn/{name}" for name in network.drawn}
    if not means | {"kept"} <= found or not found <= means | sigmas | drawn | {"kept"}:
        raise RunDirError(f"{path} belongs to another model or other target modules")


def load(path: Path, network: BankedNetwork) -> Posterior:
    """Read the file for a network of the same structure; its drawn tensors are set to the file's.

    Raises:
        RunDirError: missing, corrupt, of another format, or of another network.
    """
    bank = network.bank
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise RunDirError(f"{path} is not a posterior of this version")
            _check_names(path, set(file.keys()), network)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunDirError(f"{path} is missing: the run has not finished") from error
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path} is corrupt: {error}") from error

    kept = tensors["kept"]
    if kept.shape != bank.mask.shape or kept.dtype != torch.uint8 or bool((kept > 1).any()):
        raise RunDirError(f"{path} belongs to another model or other target modules")
    mask = kept.to(bank.mask.dtype)
    flats: dict[str, Tensor] = {}
    for kind in ("mean", "sigma"):
        if not any(name.startswith(f"{kind}/") for name in tensors):
            continue
        flat = torch.zeros(bank.size)
        for name, segment in bank.segments.items():
            view, value = segment.view(flat), tensors.get(f"{kind}/{name}")
            found = _kept(bank, segment, mask)
            expected_shape = list(view.shape)
            if found is not None:
                expected_shape[found[1]] = int(found[0].sum())
            if value is None or list(value.shape) != expected_shape or value.dtype != torch.float32:
                raise RunDirError(f"{path}: {kind}/{name} does not fit this model")
            if found is None:
                view.copy_(value)
            elif found[1] == 0:
                view[found[0]] = value
            else:
                view[:, found[0]] = value
        flats[kind] = flat.to(bank.mean.device)
    for name, value in tensors.items():
        drawn = name.removeprefix("drawn/")
        if drawn != name:
            if value.shape != network.drawn[drawn].shape or not value.is_floating_point():
                raise RunDirError(f"{path}: {name} does not fit this model")
            network.set_drawn(drawn, value)
    return Posterior(mean=flats["mean"], sigma=flats.get("sigma"), mask=mask.to(bank.mask.device))
