"""Counts bit operations and storage of an adapter from its ranks and bit widths.

A product of two numbers of b and c bits counts b c bit operations. For one token through a matrix
of rank r, with the operands' widths as indices:

    in r b_x b_A + r b_a b_E + out r b_h b_B,   and with the base   in out b_x b_W

An operand that is not quantized counts 32 bits. The base's product uses the quantized input only if
its weight is quantized too; otherwise both of its operands count 32 bits.

Like the BOPs of Bayesian Bits (van Baalen et al., NeurIPS 2020), which count the multiplications of
convolutions and linear layers by the widths of weight and input, this leaves out attention's
products of activations, norms, embeddings and biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bayeslora_cli.runs.rank_report import FLOAT_BITS

SCALE_BYTES = 4  # an fp32 number per quantizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of a matrix, its adapter's rank and bit widths."""

    width: int
    """Number of inputs."""
    height: int
    """Number of outputs."""
    rank: int
    bits: Mapping[str, int]
    """Widths of the quantized operands x, A, a, E, h, B and W."""

    def of(self, operand: str) -> int:
        """Return the bit width of an operand."""
        return self.bits.get(operand, FLOAT_BITS)

    def adapter(self) -> int:
        """Bit operations of the adapter for one token."""
        return self.rank * (
            self.width * self.of("x") * self.of("A")
            + self.of("a") * self.of("E")
            + self.height * self.of("h") * self.of("B")
        )

    def base(self) -> int:
        """Bit operations of the frozen matrix for one token."""
        of_input = self.of("x") if "W" in self.bits else FLOAT_BITS
        return self.width * self.height * of_input * self.of("W")

    def storage_bits(self) -> int:
        """Bits of the adapter's weights, without the quantizers' scales."""
        return self.rank * (self.width * self.of("A") + self.height * self.of("B") + self.of("E"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a model's adapters, also relative to 32 bits at the initial rank."""

    adapter: int
    """Bit operations per token of the adapters only."""
    adapter_relative: float
    with_base: int
    """Bit operations per token of the adapters and the adapted matrices."""
    with_base_relative: float
    storage_bytes: int
    """Bytes of the adapters' weights, with one number per quantizer for its range."""
    storage_relative: float
    model: int | None = None
    """Bit operations per token of the adapters and all linear layers of a language model, adapted
    or not, the output layer included; None: of another model."""
    model_relative: float | None = None

    def to_json(self) -> dict[str, float]:
        """Return the cost as a JSON object, without the entries that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def cost(matrices: Sequence[Sizes], init_rank: int, others: int | None = None) -> Cost:
    """Compute the cost of all matrices together.

    Args:
        others: bit operations of the linear layers that are not adapted, per token of a language
            model; None: not a language model.
    """
    at_first = [Sizes(width=m.width, height=m.height, rank=init_rank, bits={}) for m in matrices]
    adapter, base, storage = (
        sum(m.adapter() for m in matrices),
        sum(m.base() for m in matrices),
        sum(-(-m.storage_bits() // 8) + SCALE_BYTES * len(m.bits) for m in matrices),
    )
    all_adapter, all_base = sum(m.adapter() for m in at_first), sum(m.base() for m in at_first)
    rest = others or 0
    return Cost(
        adapter=adapter,
        adapter_relative=adapter / all_adapter,
        with_base=adapter + base,
        with_base_relative=(adapter + base) / (all_adapter + all_base),
        storage_bytes=storage,
        storage_relative=storage / sum(m.storage_bits() // 8 for m in at_first),
        model=None if others is None else adapter + base + rest,
        model_relative=(
            None if others is None else (adapter + base + rest) / (all_adapter + all_base + rest)
        ),
    )


def multiplications(width: int, height: int, rank: int, operands: Sequence[str]) -> list[int]:
    """Count, for each operand, the multiplications per token that it takes part in."""
    first, last = width * rank, height * rank
    found = {"x": first, "A": first, "a": rank, "E": rank, "h": last, "B": last}
    if "W" in operands:
        found["W"] = width * height
        found["x"] += width * height
    return [found[operand] for operand in operands]
