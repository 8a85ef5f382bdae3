"""`RunPosterior`: the posterior of a finished run, to inspect and to sample from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class RunPosterior:
    """A distribution over the trained parameters of a run, adapters and head.

    They lie in one vector (N,), with gaps between them for alignment; `named` takes it apart.
    """

    posterior: Posterior
    """The posterior over the bank's parameters; `posterior.kind` names its kind."""
    summarised: Mapping[str, Any] | None
    """The summary of the posterior in result.json."""

    @property
    def mean(self) -> Tensor:
        """The point that is exported, and evaluated without samples: (N,) fp32."""
        return self.posterior.mean

    @property
    def sigma(self) -> Tensor | None:
        """Standard deviations (N,) fp32, 0 for pruned triplets; None: the posterior is a point."""
        return getattr(self.posterior, "sigma", None)

    @property
    def mask(self) -> Tensor:
        """1 for kept triplets, 0 for pruned ones: (matrices, initial rank) fp32."""
        return self.posterior.mask

    def sample(self, *, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """Draw parameters (N,), on the posterior's device; pruned triplets stay pruned.

        For IVON theta ~ N(mean, temperature sigma^2) (Shen et al., ICML 2024, arXiv 2402.17641).

        Args:
            seed: seed of the noise, which is the same on any device.
            temperature: factor of the variance; 0 gives the mean.
        Raises:
            UserError: the run's optimizer finds only a point, or the temperature is below 0.
        """
        if not self.posterior.can_sample:
            raise UserError("the run has a point and no posterior to sample: train with ivon")
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature {temperature}: give a number of 0 or more")
        return self.posterior.sample(torch.Generator().manual_seed(seed), temperature)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of parameters (N,) by their names in the model, each in its own shape."""
        segments = self.posterior.layout.segments
        return {name: segment.view(theta) for name, segment in segments.items()}

    def summary(self) -> dict[str, Any] | None:
        """Return the training's summary, `posterior` of result.json; None: there is none.

        It has, among others, quantiles of IVON's Hessian over its initial value, the spread of
        sigma, and how much the order by signal-to-noise ratio agrees with that by magnitude.
        """
        return None if self.summarised is None else dict(self.summarised)

    def __repr__(self) -> str:
        kind = "samples" if self.posterior.can_sample else "a point"
        count = sum(value.numel() for value in self.named(self.mean).values())
        return f"RunPosterior({self.posterior.kind}, {count:,} parameters, {kind})"
