"""Finds which options change the result, and which have no effect given the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OPTIMIZERS, MethodEntry, OptimizerEntry
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import ConfigError


def affecting(config: RunConfig) -> dict[str, Any]:
    """Return the values that decide the result, by field name, without those of no effect."""
    return deciding(asdict(config))


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values`, of any version, that decide the result; unknown options do."""
    idle = {name for name, option in OPTIONS.items() if not option.affects_result}
    method, optimizer = values.get("method"), values.get("optimizer")
    if method in METHODS and optimizer in OPTIMIZERS:
        idle |= without_effect(method, optimizer, values).keys()
    return {name: value for name, value in values.items() if name not in idle}


def without_effect(method: str, optimizer: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that have no effect given the others: field name -> why.

    Args:
        values: values of the other options; those that are missing have their defaults.
    """
    found = {
        **inapplicable(METHODS, method, f"--method {method}"),
        **inapplicable(OPTIMIZERS, optimizer, f"--optimizer {optimizer}"),
    }
    for name, option in OPTIONS.items():
        for condition in option.idle_when:
            other = OPTIONS[condition.name]
            value = values.get(condition.name, other.default)
            if condition.holds(value):
                typed = other.flag if value is True else f"{other.flag} {value}"
                found.setdefault(name, condition.why or typed)
    return found


def inapplicable(
    entries: Mapping[str, MethodEntry] | Mapping[str, OptimizerEntry], name: str, why: str
) -> dict[str, str]:
    """Return options that apply to other entries of a catalogue table, but not to this one."""
    if name not in entries:
        return {}
    mine = entries[name]
    reasons = mine.reasons
    return {
        option: f"{why}, {reasons[option]}" if option in reasons else why
        for entry in entries.values()
        for option in entry.options
        if option not in mine.options
    }


def check_schedule(config: RunConfig, total: int) -> None:
    """Check the step numbers against the run's total number of steps.

    Raises:
        ConfigError: a warm-up, plateau or pruning phase does not fit into `total` steps.
    """
    idle = without_effect(config.method, config.optimizer, asdict(config))
    found = []
    if config.warmup_steps >= total:
        found.append(f"--warmup-steps {config.warmup_steps}: the run has only {total} steps")
    if "boost_until_step" not in idle and config.boost_until_step >= total:
        found.append(f"--boost-until-step {config.boost_until_step}: the run has {total} steps")
    if "t_init" not in idle and config.t_init + config.t_final > total:
        found.append(
            f"--t-init {config.t_init} --t-final {config.t_final}: together more than the run's "
            f"{total} steps; lower them or train longer"
        )
    if found:
        raise ConfigError(found)


def kind(config: RunConfig) -> tuple[Any, ...]:
    """Return what decides a run's network and buffers.

    Two runs with equal kinds can use the same network and buffers, one after the other, in one
    process.
    """
    return tuple(v for name, v in asdict(config).items() if not OPTIONS[name].shares_network)
