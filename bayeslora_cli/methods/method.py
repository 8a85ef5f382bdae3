"""`Method`: how a backbone becomes trainable. One object per method; no code branches on its name.

To add a method, write a file in this folder (or a folder) with a subclass and one object of it, and
an entry in `config.catalogue.METHODS` that names the object.
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
"""(product of the base layer, rank, alpha, generator of initial values) -> the adapted layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunFacts:
    """What `train --dry-run` prints about a run of the method."""

    trained_at_the_end: int | None
    """Number of trained elements at the end of the run; None: not known beforehand."""
    budget: RankBudget | None = None
    """Number of triplets over all matrices by step; None: no budget."""
    final_step: int = -1
    """Step of the last allocation of ranks; -1: there is none."""
    phases: tuple[tuple[str, int, int], ...] | None = None
    """Name, first step and the step after the last of each phase; None: there are no phases."""


class Method(ABC):
    """How a backbone becomes trainable. The objects hold no state of a run.

    A subclass must define only `layer_maker`. The defaults suit a method with fixed ranks, no
    penalty, no phases and no parameters besides those of its layers.
    """

    peft_type: str | None = None
    """The adapter's type in PEFT's format, ADALORA or LORA; None: runs produce whole models, not
    adapters. If the type has no place for singular values, they are folded into A."""
    phase_texts: ClassVar[Mapping[str, str]] = {}
    """What happens in each phase of `DryRunFacts.phases`, as text for the user."""

    # ---- the network

    @abstractmethod
    def layer_maker(self, config: RunConfig) -> LayerMaker | None:
        """Return the constructor of adapted layers; None: the backbone's weights are trained."""

    def parameters(
        self, config: RunConfig, adapters: Mapping[str, LowRankLinear]
    ) -> list[tuple[str, str, nn.Parameter]]:
        """Return extra parameters besides the layers' own: (name, role, parameter) each.

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
        """Return what the layers compute with instead of their parameters; None: published factors.

        Args:
            bank: holds all parameters, also those of `parameters`; its factors may be replaced.
            dtype: type of the frozen weights and of the computation.
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
        """Return the object that allocates ranks or learns gates in the run; None: there is none.

        Args:
            config: has its final schedule.
            noise: the run's generator of random numbers on the device.
        """
        return None

    def orthogonality(self, config: RunConfig) -> float:
        """Return the weight of the orthogonality penalty; 0: none."""
        return 0.0

    def warning(self, config: RunConfig) -> str | None:
        """Return a warning if the method cannot work with the final schedule."""
        return None

    # ---- reports and cards

    def dry_run(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], trained: int
    ) -> DryRunFacts:
        """Return what is known about a run beforehand; `config` has its final schedule.

        Args:
            matrices: name, number of inputs and of outputs of each adapted matrix.
            trained: number of trained elements at the initial rank.
        """
        return DryRunFacts(trained_at_the_end=trained)

    def bit_operations(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], others: int
    ) -> Mapping[str, float] | None:
        """Return the bit operations per token of a language model, for `train --dry-run`.

        None: the method does not change them. The entries `adapters`, `with_base` (and the adapted
        matrices) and `model` (and all other linear layers) are those of 32 bits at the initial
        rank. Each has a second one, such as `adapters_least`: the least share of it that the run
        can reach.

        Args:
            matrices: name, number of inputs and of outputs of each adapted matrix.
            others: bit operations per token of the linear layers that are not adapted.
        """
        return None

    def ranked_by(self, config: RunConfig) -> str | None:
        """Name what the scores in ranks.json are: a criterion, or what else decides the ranks."""
        return config.criterion

    def card(self, result: Mapping[str, Any]) -> str | None:
        """Return a paragraph for the run's model card, from its result.json; None: no paragraph."""
        return None

    def block_key(self, config: RunConfig) -> tuple[Hashable, ...]:
        """Return a key: runs with equal keys share the compiled code of an adapted block."""
        return config.method, config.init_rank


def find_method(name: str) -> Method:
    """Return the method that the catalogue lists under a name."""
    found: Method = implementation(METHODS[name].implementation)
    return found
