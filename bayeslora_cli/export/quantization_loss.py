"""What of a run's quantization a form for elsewhere loses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bayeslora_cli.export.verification import Batch, run_logits
from bayeslora_cli.methods.blora.gates import BASE, WEIGHTS
from bayeslora_cli.methods.network import Network

logger = logging.getLogger("bayeslora")

# format -> quantized operands that it keeps, the weights as the numbers that they are rounded to
KEPT = {
    "lora": frozenset(WEIGHTS) - {BASE},
    "merged": frozenset(WEIGHTS),
    "onnx": frozenset(WEIGHTS),
}
NAMES = {"x": "activations", "a": "activations", "h": "activations", BASE: "base weights"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """What is in full precision in an export, and was not in the run."""

    what: list[str]
    max_difference: float
    """Largest |difference| that it makes to a logit of the run."""
    rows: int
    changed: int | None
    """Rows that get another class by it; None: the task has none."""

    def __str__(self) -> str:
        changed = "" if self.changed is None else f", {self.changed} of {self.rows} classes change"
        return (
            f"not quantized in this format: {' and '.join(self.what)}, which are neither rounded "
            f"nor cut off at their ranges; the run's own logits differ by up to "
            f"{self.max_difference:.1e}{changed}"
        )


def lose(network: Network, form: str, batches: Sequence[Batch]) -> Lost | None:
    """Switch off, in the network, the quantizers that a format has no place for; warn of it.

    Returns:
        None where nothing is lost.
    """
    operands = network.operands
    if operands is None or form not in KEPT:
        return None
    gone = operands.quantized - KEPT[form]
    if not gone:
        return None
    before = run_logits(network, batches)
    operands.quantized -= gone
    after = run_logits(network, batches)
    pairs = list(zip(before, after, strict=True))
    changed = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in pairs)
    lost = Lost(
        what=sorted({NAMES[operand] for operand in gone}),
        max_difference=max(float((a - b).abs().max()) for a, b in pairs),
        rows=sum(len(a) for a in before),
        changed=changed if network.labels.classes else None,
    )
    logger.warning("--format %s: %s", form, lost)
    return lost
