"""What is measured of an export, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayeslora_cli.evaluation.forward_passes import Metrics, describe
from bayeslora_cli.export.formats.bf16_rounding import KeptUpdate


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Comparison of an export's logits with the run's."""

    inputs: str
    """The task's split, the user's file, or `random`."""
    rows: int
    max_difference: float
    """Largest |difference| of a logit."""
    allowed: float
    largest_logit: float

    def __str__(self) -> str:
        rows = "random rows" if self.inputs == "random" else f"rows of {self.inputs}"
        return (
            f"logits on {self.rows} {rows}: largest difference from the run "
            f"{self.max_difference:.1e}, allowed {self.allowed:.1e}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitChange:
    """How far the run's own logits move when something about its network changes."""

    max_difference: float
    """Largest |difference| between the logits before and after."""
    rows: int
    changed: int | None
    """Number of rows whose predicted class changes; None: the task has no classes."""

    def size(self) -> str:
        """Write it as the end of a sentence on the logits."""
        changed = "" if self.changed is None else f", {self.changed} of {self.rows} classes change"
        return f"logits differ by up to {self.max_difference:.1e}{changed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationLoss(LogitChange):
    """The effect of storing in full precision what the run quantized."""

    what: list[str]

    def __str__(self) -> str:
        return (
            f"not quantized in this format: {' and '.join(self.what)}, which are neither rounded "
            f"nor cut off at their ranges; the run's own {self.size()}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseChange(LogitChange):
    """The effect of opening an adapter on the checkpoint, which was trained on other weights."""

    base_precision: str
    """Precision of the frozen weights in the training."""

    def __str__(self) -> str:
        return (
            f"trained on frozen weights in {self.base_precision}, and its metrics measured there; "
            f"on the checkpoint's own weights the run's {self.size()}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundingLoss(LogitChange):
    """The effect of storing a merged model's weights in bf16."""

    update: KeptUpdate | None
    """What is left of the adapters' updates; None: there were none."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RoundingLoss:
        """Read what a manifest holds."""
        update = value["update"]
        return cls(**value | {"update": None if update is None else KeptUpdate(**update)})

    def __str__(self) -> str:
        kept = "" if self.update is None else f"{self.update}; "
        return f"{kept}with all weights rounded to bf16, the run's own {self.size()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Measurements of an export."""

    check: Check
    loss: QuantizationLoss | None
    """The effect of quantizers that the format drops; None: it keeps all."""
    rounding: RoundingLoss | None
    """The effect of weights in bf16; None: they are in fp32."""
    base: BaseChange | None
    """The effect of the checkpoint's own weights; None: the run was trained on them, or the export
    holds the run's."""
    run: Metrics
    """Metrics of the training's best evaluation."""
    run_precision: str
    """Precision of the training's computation."""
    pruned: tuple[Metrics, Metrics] | None
    """Metrics before and after pruning further; None: not pruned."""
    precision: str
    """Precision in which the pruned network and the logits were computed."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of the exported state."""
        return self.run if self.pruned is None else self.pruned[1]

    @property
    def metrics_precision(self) -> str:
        """Precision in which `metrics` were measured."""
        return self.run_precision if self.pruned is None else self.precision


def describe_export(manifest: dict[str, Any], *, warned: bool = True) -> list[str]:
    """Say what was measured, one line each; `warned`: also what `export_run` warned of."""
    metrics, precision = manifest["metrics"], manifest["precision"]["export"]
    lines = []
    if metrics["before_pruning"] is not None:
        lines = [
            f"before pruning, in {precision}: {describe(metrics['before_pruning'])}",
            f"after pruning to rank {manifest['options']['target_rank']}, in {precision}: "
            f"{describe(metrics['after_pruning'])}",
        ]
    if warned and manifest["lost"] is not None:
        lines.append(str(QuantizationLoss(**manifest["lost"])))
    if warned and "base" in manifest:
        lines.append(str(BaseChange(**manifest["base"])))
    if "rounding" in manifest:
        lines.append(str(RoundingLoss.from_json(manifest["rounding"])))
    return [*lines, str(Check(**manifest["check"]))]
