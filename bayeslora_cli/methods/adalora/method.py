"""AdaLoRA (Zhang et al., ICLR 2023): a criterion allocates a budget of ranks to the matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.method import DryRunFacts, LayerMaker, Method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.layer import ADALORA_STD, RANK_EPSILON, LowRankLinear


def adalora_linear(
    base: AdaptedLinear, rank: int, alpha: float, generator: torch.Generator
) -> LowRankLinear:
    """Build an initial AdaLoRA adapter: A, B ~ N(0, 0.02^2), E = 0, scale alpha / (r + 1e-5)."""
    layer = LowRankLinear(base, rank, alpha / (rank + RANK_EPSILON), singular_values=True)
    with torch.no_grad():
        layer.lora_A.normal_(std=ADALORA_STD, generator=generator)
        layer.lora_B.normal_(std=ADALORA_STD, generator=generator)
    return layer


def rank_budget(config: RunConfig, matrices: int) -> RankBudget:
    """Return the rank budget of each step over all matrices; `config` has its final schedule."""
    return RankBudget(
        initial=config.init_rank * matrices,
        target=config.target_rank * matrices,
        t_init=config.t_init,
        t_final=config.t_final,
        delta_t=config.delta_t,
        total=config.total_steps,
    )


class AdaLora(Method):
    """Adapters B diag(E) A, whose lowest-scoring triplets are pruned until the budget is met."""

    peft_type = "ADALORA"

    def layer_maker(self, config: RunConfig) -> LayerMaker:
        return adalora_linear

    def allocator(
        self,
        config: RunConfig,
        network: Network,
        noise: torch.Generator,
        processes: Processes = SINGLE,
    ) -> RankAllocator:
        assert config.criterion is not None
        budget = rank_budget(config, len(network.bank.matrices))
        return RankAllocator(network.bank, load_criterion(config.criterion), budget)

    def orthogonality(self, config: RunConfig) -> float:
        return config.orth_reg

    def dry_run(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], trained: int
    ) -> DryRunFacts:
        """Return the facts for a dry run; final elements assume equal ranks in every matrix."""
        lost = config.init_rank - config.target_rank
        elements = sum(width + height + 1 for _, width, height in matrices)
        budget = rank_budget(config, len(matrices))
        return DryRunFacts(
            trained_at_the_end=trained - lost * elements,
            budget=budget,
            final_step=budget.final_step,
        )


ADALORA = AdaLora()
