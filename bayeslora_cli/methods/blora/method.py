"""B-LoRA (Meo et al., arXiv 2406.13046): gates learn the ranks and the bit widths together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.values import parse_ladder
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.blora.bit_operations import Sizes, cost
from bayeslora_cli.methods.blora.gates import BASE, GateParameters, GatePlan
from bayeslora_cli.methods.blora.layer import GatedLinear, gated_linear
from bayeslora_cli.methods.blora.operands import OperandPublisher
from bayeslora_cli.methods.blora.report import width_weights
from bayeslora_cli.methods.blora.schedule import schedule_of, too_short
from bayeslora_cli.methods.blora.trainer import GateTrainer
from bayeslora_cli.methods.method import DryRunFacts, LayerMaker, Method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.runs.rank_report import GATES

# --blora-mode: gates over bit widths, over ranks
GATED = {"both": (True, True), "quant": (True, False), "rank": (False, True)}


def plan_of(config: RunConfig) -> GatePlan:
    """Return the gate plan of a configuration."""
    bits, ranks = GATED[config.blora_mode]
    ladder = parse_ladder(config.bit_ladder)
    return GatePlan(bits=bits, ranks=ranks, ladder=ladder, base=config.quantize_base)


class BLora(Method):
    """Adapters with quantized operands and gated ranks."""

    peft_type = "LORA"  # not ADALORA, whose scale in PEFT is another
    phase_texts: ClassVar[Mapping[str, str]] = {
        "float": "neither quantizers nor gates",
        "learning": "gates are drawn; gates and ranges learn",
        "fixed": "gates at their thresholds",
    }

    def layer_maker(self, config: RunConfig) -> LayerMaker:
        return gated_linear

    def parameters(
        self, config: RunConfig, adapters: Mapping[str, LowRankLinear]
    ) -> list[tuple[str, str, nn.Parameter]]:
        device = next(iter(adapters.values())).lora_A.device
        return plan_of(config).parameters(len(adapters), config.init_rank, device)

    def operands(
        self,
        config: RunConfig,
        bank: AdapterBank,
        adapters: Mapping[str, LowRankLinear],
        dtype: torch.dtype,
    ) -> OperandPublisher:
        gates = GateParameters(plan_of(config), bank.layout)
        layers = {name: m for name, m in adapters.items() if isinstance(m, GatedLinear)}
        return OperandPublisher(gates, bank, layers, dtype)

    def allocator(
        self,
        config: RunConfig,
        network: Network,
        noise: torch.Generator,
        processes: Processes = SINGLE,
    ) -> GateTrainer:
        """Build the gate trainer; `noise` also draws the gates."""
        return GateTrainer(
            network,
            schedule_of(config),
            width_weights=config.lambda_quant * width_weights(network, bop=config.reg == "bop"),
            rank_weight=config.lambda_rank,
            gate_lr=config.gate_lr,
            range_lr=config.range_lr,
            generator=noise,
            processes=processes,
        )

    def warning(self, config: RunConfig) -> str | None:
        return too_short(config)

    def dry_run(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], trained: int
    ) -> DryRunFacts:
        """Return the facts for a dry run, without the final elements, which gates decide later."""
        schedule = schedule_of(config)
        return DryRunFacts(
            trained_at_the_end=None, final_step=schedule.final_step, phases=tuple(schedule.phases)
        )

    def bit_operations(
        self, config: RunConfig, matrices: Sequence[tuple[str, int, int]], others: int
    ) -> dict[str, float]:
        """Return the cost at the start, unquantized, and relative to it with all gates closed."""
        plan = plan_of(config)
        rank = 1 if plan.ranks else config.init_rank
        bits = dict.fromkeys(plan.operands, plan.ladder[0])
        first, least = (
            cost([Sizes(width=w, height=h, rank=r, bits=b) for _, w, h in matrices],
                 config.init_rank, others)
            for r, b in ((config.init_rank, {}), (rank, bits))
        )  # fmt: skip
        assert first.model is not None
        assert least.model_relative is not None
        return {
            "adapters": first.adapter,
            "adapters_least": least.adapter_relative,
            "with_base": first.with_base,
            "with_base_least": least.with_base_relative,
            "model": first.model,
            "model_least": least.model_relative,
        }

    def ranked_by(self, config: RunConfig) -> str:
        return GATES

    def card(self, result: Mapping[str, Any]) -> str | None:
        cost, bits = result["cost"], result["bits"]
        lines = [
            f"Mean rank {result['mean_rank']:.2f}, mean width {result['mean_bits']:.2f} bits; "
            f"{cost['adapter_relative']:.2%} of the bit operations\nof unquantized adapters at the "
            f"initial rank ({cost['with_base_relative']:.2%} with the adapted matrices "
            f"themselves), {cost['storage_bytes']:,} bytes.\n"
        ]
        if "model_relative" in cost:
            lines.append(
                "With all other linear layers of the model, the output layer among them: "
                f"{cost['model']:,}\nbit operations per token, {cost['model_relative']:.2%}.\n"
            )
        if bits is not None:
            base = " and the base weights" if any(BASE in own for own in bits.values()) else ""
            lines.append(
                "The adapter below has E folded into A and its quantized weights as real numbers; "
                f"its\nactivations{base} are not quantized any more, so that it may predict "
                "otherwise. The integer\ncodes, and the metrics above, are those of "
                "`bayeslora export --format quantized`.\n"
            )
        return "\n".join(lines)

    def block_key(self, config: RunConfig) -> tuple[Hashable, ...]:
        return *super().block_key(config), config.blora_mode


BLORA = BLora()
