"""`FactorisedGaussian`: the posterior that IVON finds, or without sigma a point estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.bayes.posterior_summary import summarise
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.adapters.bank_layout import BankLayout, Segment


@dataclass(kw_only=True, slots=True)
class FactorisedGaussian(Posterior):
    """Independent theta_i ~ N(mean_i, sigma_i^2), or a point estimate without sigma.

    Its file holds kept (n, r) uint8, and mean/NAME and sigma/NAME of each parameter, without the
    rows and columns of pruned triplets.
    """

    kind: ClassVar[str] = "bayeslora-posterior-1"

    layout: BankLayout
    mean: Tensor
    sigma: Tensor | None
    """Standard deviations (N,); None for a point estimate."""
    mask: Tensor

    @property
    def can_sample(self) -> bool:
        return self.sigma is not None

    def sample(self, generator: torch.Generator, temperature: float) -> Tensor:
        """Draw theta ~ N(mean, temperature sigma^2)."""
        assert self.sigma is not None, "a point estimate has nothing to sample"
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        theta = torch.addcmul(self.mean, noise, self.sigma, value=math.sqrt(temperature))
        if self.layout.has_singular_values:
            self.layout.singular_values(theta).mul_(self.mask)
        return theta

    def summary(self, config: RunConfig, training_rows: int) -> dict[str, Any] | None:
        if self.sigma is None:
            return None
        return summarise(self.layout, self.mean, self.sigma, self.mask, config, training_rows)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"kept": self.mask.to("cpu", torch.uint8)}
        for kind, flat in (("mean", self.mean), ("sigma", self.sigma)):
            if flat is None:
                continue
            host = flat.cpu()
            for name, segment in self.layout.segments.items():
                value = segment.view(host)
                found = _kept(self.layout, segment, self.mask)
                if found is not None:
                    kept, dim = found
                    value = value[kept] if dim == 0 else value[:, kept]
                tensors[f"{kind}/{name}"] = value.clone().contiguous()
        return tensors

    @classmethod
    def check_names(cls, names: set[str], layout: BankLayout) -> bool:
        needed = {"kept", *(f"mean/{name}" for name in layout.segments)}
        return needed <= names <= needed | {f"sigma/{name}" for name in layout.segments}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], layout: BankLayout, device: torch.device
    ) -> Self:
        kept = tensors["kept"]
        shape = len(layout.matrices), layout.rank
        if kept.shape != shape or kept.dtype != torch.uint8 or bool((kept > 1).any()):
            raise ValueError("kept does not fit this model")
        mask = kept.float()
        flats: dict[str, Tensor] = {}
        for kind in ("mean", "sigma"):
            if not any(name.startswith(f"{kind}/") for name in tensors):
                continue
            flat = torch.zeros(layout.size)
            for name, segment in layout.segments.items():
                _fill(segment.view(flat), tensors.get(f"{kind}/{name}"), f"{kind}/{name}",
                      _kept(layout, segment, mask))  # fmt: skip
            flats[kind] = flat.to(device)
        return cls(
            layout=layout, mean=flats["mean"], sigma=flats.get("sigma"), mask=mask.to(device)
        )


def _kept(layout: BankLayout, segment: Segment, mask: Tensor) -> tuple[Tensor, int] | None:
    """Return the kept rows (dim 0) or columns (dim 1) of an adapter's segment; None: all."""
    name, _, part = segment.name.rpartition(".lora_")
    if segment.role != "adapter" or not layout.has_singular_values:
        return None
    return mask[layout.matrices.index(name)].bool().cpu(), 1 if part == "B" else 0


def _fill(view: Tensor, value: Tensor | None, name: str, kept: tuple[Tensor, int] | None) -> None:
    """Write `value` to the kept part of a segment.

    Raises:
        ValueError: the value has another shape or type, or is missing.
    """
    shape = list(view.shape)
    if kept is not None:
        shape[kept[1]] = int(kept[0].sum())
    if value is None or list(value.shape) != shape or value.dtype != torch.float32:
        raise ValueError(f"{name} does not fit this model")
    if kept is None:
        view.copy_(value)
    elif kept[1] == 0:
        view[kept[0]] = value
    else:
        view[:, kept[0]] = value
