"""`Method`: how a backbone becomes trainable. One object per method; nothing branches on its name.

To add a method: a file here (or a folder) with a subclass and one object of it, and an entry in
`config.catalogue.METHODS` that names the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bayeslora_cli.config.catalogue import METHODS, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.methods.network import Network, PassOperands
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.layer import LowRankLinear

LayerMaker = Callable[[AdaptedLinear, int, float, torch.Generator], LowRankLinear]
"""(product of the base layer, rank, alpha, generator of the start values) -> the adapted layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunFacts:
    """What `train --dry-run` says of a method's course."""

    trained_at_the_end: int | None
    """Trained elements at the end of the run; None: not known before it."""
    budget: RankBudget | None = None
    """Triplets over all matrices, by step; None: no budget."""
    phases: tuple[tuple[str, int, int], ...] | None = None
    """Name, first step and the step after the last; None: the run has no phases."""


class Method(ABC):
    """How a backbone becomes trainable. The objects hold no state of a run.

    Only `layer_maker` must be written. The other answers are those of a method whose ranks are
    fixed, which has no penalty, no phases and no parameters beside those of its layers.
    """

    peft_type: str | None = None
    """The adapter's type in PEFT's format, ADALORA or LORA; None: its runs have no adapter but
    whole models. Singular values that the type has no place for are folded into A."""
    phase_texts: ClassVar[Mapping[str, str]] = {}
    """What happens in each phase of `DryRunFacts.phases`, for people."""

    # ---- the network

    @abstractmethod
    def layer_maker(self, config: RunConfig) -> LayerMaker | None:
        """What makes the adapted layers; None: the backbone's own weights are trained."""

    def parameters(
        self, config: RunConfig, adapters: Mapping[str, LowRankLinear]
    ) -> list[tuple[str, str, nn.Parameter]]:
        """Parameters beside the layers' own: (name, role, parameter), as `AdapterBank` takes them.

        Args:
            adapters: the adapted layers by name, in the model's order, on the run's device.
        """
        return []

    def operands(
        self,
        config: RunConfig,
        bank: AdapterBank,
        adapters: Mapping[str, LowRankLinear],
        dtype: torch.dtype,
    ) -> PassOperands | None:
        """What the layers compute with in place of their parameters; None: the published factors.

        Args:
            bank: holds the parameters, those of `parameters` included; its factors may be replaced.
            dtype: of the frozen weights and of the computation.
        """
        return None

    # ---- training

    def allocator(
        self,
        config: RunConfig,
        network: Network,
        noise: torch.Generator,
        processes: Processes = SINGLE,
    ) -> Allocator | None:
        """What allocates ranks or learns gates during the run; None: nothing does.

        Args:
            config: with its schedule final.
            noise: the run's generator of random numbers on the device.
        """
        return None

    def orthogonality(self, config: RunConfig) -> float:
        """Weight of the orthogonality penalty; 0: none."""
        return 0.0

    def warning(self, config: RunConfig) -> str | None:
        """A warning about a schedule, which is final, that the method can do nothing with."""
        return None

    # ---- what is said of it

    def dry_run(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], trained: int
    ) -> DryRunFacts:
        """The run's course as far as it is known beforehand; `config` with its schedule final.

        Args:
            matrices: name, inputs and outputs of each adapted matrix.
            trained: trained elements at the initial rank.
        """
        return DryRunFacts(trained_at_the_end=trained)

    def ranked_by(self, config: RunConfig) -> str | None:
        """What the scores in ranks.json are: a criterion's name, or what else decides the ranks."""
        return config.criterion

    def card(self, result: Mapping[str, Any]) -> str | None:
        """A paragraph of the run's model card, from its result.json."""
        return None

    def block_key(self, config: RunConfig) -> tuple[Hashable, ...]:
        """What tells the compiled code of an adapted block from that of other runs."""
        return config.method, config.init_rank


def find_method(name: str) -> Method:
    """The method that the catalogue has under a name."""
    found: Method = implementation(METHODS[name].implementation)
    return found
