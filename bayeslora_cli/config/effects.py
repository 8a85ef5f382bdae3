"""Which options decide a run's result, and which do nothing beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OPTIMIZERS
from bayeslora_cli.config.run_config import FIELDS, RunConfig

QUANT = ("lambda_quant", "bit_ladder", "quantize_base", "reg", "range_lr")
"""Options of quantizers."""
BLORA = ("blora_mode", "lambda_rank", "gate_lr", *QUANT)


def affecting(config: RunConfig) -> dict[str, Any]:
    """The values that decide the result, by field name; none that have no effect on its method."""
    return deciding(asdict(config))


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a configuration of any version; what this one does not know decides as well."""
    idle = {name for name, field in FIELDS.items() if not field.metadata["affects_result"]}
    method, optimizer = values.get("method"), values.get("optimizer")
    if method in METHODS and optimizer in OPTIMIZERS:
        idle |= without_effect(method, optimizer, values).keys()
    return {name: value for name, value in values.items() if name not in idle}


def without_effect(method: str, optimizer: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing beside the others: field name -> why.

    Args:
        values: of the other options, all or those that were typed.
    """
    mode = values.get("blora_mode") if method == "blora" else None
    groups = (
        (method != "adalora", ("delta_t", "orth_reg"), f"--method {method}"),
        (method not in ("adalora", "blora"), ("t_init", "t_final"), f"--method {method}"),
        (method != "blora", BLORA, f"--method {method}"),
        (
            method == "blora",
            ("target_rank",),
            "--method blora, whose gates find the ranks from --init-rank on",
        ),
        (mode == "rank", QUANT, "--blora-mode rank"),
        (bool(values.get("eager")), ("compile",), "--eager"),
        (mode == "quant", ("lambda_rank",), "--blora-mode quant"),
        (
            method == "blora" and mode != "rank" and "," not in str(values.get("bit_ladder", ",")),
            ("lambda_quant", "reg"),
            "one width in --bit-ladder",
        ),
        (
            method == "full",
            ("target_rank", "init_rank", "alpha", "target_modules"),
            "--method full",
        ),
        (
            optimizer != "ivon",
            (
                "ess",
                "ess_per_example",
                "hess_init",
                "ivon_beta1",
                "ivon_beta2",
                "clip_radius",
                "train_samples",
            ),
            f"--optimizer {optimizer}",
        ),
        (
            values.get("lr_schedule", "linear") != "boost",
            ("boost_lr", "boost_until_step"),
            "--lr-schedule linear",
        ),
        (values.get("ess") is not None, ("ess_per_example",), "--ess"),
        (values.get("max_steps") is not None, ("epochs",), "--max-steps"),
        (
            values.get("task") != "custom",
            ("text_columns", "label_column"),
            f"--task {values.get('task')}",
        ),
        (values.get("task") in ("custom", "demo"), ("data",), f"--task {values.get('task')}"),
    )
    return {name: why for holds, names, why in groups if holds for name in names}
