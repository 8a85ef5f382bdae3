"""All precisions of frozen weights, by name; a table of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class BasePrecisionEntry:
    """How the frozen weights are stored: a form of `models.adapters.adapted_linear`."""

    implementation: str
    """Place of the class, a `models.base_weights.quantized_linear.QuantizedLinear`."""
    step_time: float
    """Time of a step relative to one on dense weights in bf16, as docs/performance.md has it."""
    quantized: bool = True
    """Whether it has fewer bits than checkpoints usually have."""
    packages: tuple[str, ...] = ()
    """Packages that it needs in addition to bayeslora's requirements."""
    extra: str | None = None
    """bayeslora's optional dependency that installs `packages`."""
    elsewhere: tuple[str, ...] = ()
    """Arguments of transformers' BitsAndBytesConfig that make these weights, as they are written in
    a model card; none: it does not."""


_BITSANDBYTES: Any = {"packages": ("bitsandbytes",), "extra": "quantized"}
BASE_PRECISIONS: dict[str, BasePrecisionEntry] = {
    "bf16": BasePrecisionEntry(
        implementation="bayeslora_cli.models.base_weights.bf16:Bf16Linear",
        step_time=1.0,
        quantized=False,
    ),
    "int8": BasePrecisionEntry(
        implementation="bayeslora_cli.models.base_weights.int8:Int8Linear",
        step_time=1.05,
        elsewhere=("load_in_8bit=True",),
        **_BITSANDBYTES,
    ),
    "nf4": BasePrecisionEntry(
        implementation="bayeslora_cli.models.base_weights.nf4:Nf4Linear",
        step_time=1.05,
        elsewhere=(
            "load_in_4bit=True",
            'bnb_4bit_quant_type="nf4"',
            "bnb_4bit_use_double_quant=True",
        ),
        **_BITSANDBYTES,
    ),
    "fp8": BasePrecisionEntry(
        implementation="bayeslora_cli.models.base_weights.fp8:Fp8Linear", step_time=0.8
    ),
}
