"""Finds problems in the values of a configuration: of each value, and of values together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bayeslora_cli.config.catalogue import (
    BASE_PRECISIONS,
    CRITERIA,
    METHODS,
    OPTIMIZERS,
    MethodEntry,
    criteria_of,
)
from bayeslora_cli.config.catalogue_text import posterior_optimizers
from bayeslora_cli.config.options import Option


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest known name, to end a message with; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def problems(options: Mapping[str, Option], values: Mapping[str, Any]) -> list[str]:
    """Return every problem of a configuration: the flag, the value received and the fix.

    Args:
        options: the options by field name.
        values: the values of all options, by field name.
    """
    found = [p for name, option in options.items() for p in _by_itself(option, values[name])]
    for name, fix in _beside_others(values):
        typed = "" if values[name] is True else f" {values[name]}"  # a flag alone
        found.append(f"{options[name].flag}{typed}: {fix}")
    return found


def unknown(option: Option, value: Any) -> str:
    """Write the problem of a value that is not among the option's choices."""
    known = tuple(option.choices or ())
    one = "of" if option.is_list else "one of"
    return f"{option.flag} {value}: choose {one} {', '.join(known)}{nearest(str(value), known)}"


def _by_itself(option: Option, value: Any) -> Iterator[str]:
    if value is None:
        return
    if option.choices is not None and not option.narrowed:
        items = value if option.is_list else (value,)
        yield from (unknown(option, item) for item in items if item not in option.choices)
    for check in option.checks:
        try:
            check(value)
        except ValueError as error:
            yield f"{option.flag} {value}: {error}"
            return


def _beside_others(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield fields whose values do not fit those of others, each with the fix."""
    method, optimizer = METHODS.get(v["method"]), OPTIMIZERS.get(v["optimizer"])
    if method is not None and optimizer is not None:
        yield from _criterion(v)
    yield from _files(v)
    yield from _ranks(v, method)
    if v["grad_accum"] >= 1 and v["batch_size"] % v["grad_accum"]:
        yield "grad_accum", f"must divide --batch-size ({v['batch_size']})"
    if v["train_samples"] != 1 and not (optimizer is not None and optimizer.posterior):
        yield "train_samples", f"only --optimizer {posterior_optimizers()} samples weights"
    if (base := BASE_PRECISIONS.get(v["base_precision"])) is not None:
        yield from _base_precision(v, method, quantized=base.quantized)
    if v["shard"]:
        yield from _shards(v, method)
    if v["lr_schedule"] == "boost" and v["boost_lr"] is None:
        yield "lr_schedule", "needs --boost-lr and --boost-until-step"


def _files(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield files that do not fit the task, or each other."""
    if (v["task"] == "custom") != (v["train_file"] is not None):
        fix = "--task custom takes its examples from --train-file, other tasks have their own"
        yield "train_file", fix
    if v["eval_file"] is not None and v["train_file"] is None:
        yield "eval_file", "needs --train-file"


def _ranks(v: Mapping[str, Any], method: MethodEntry | None) -> Iterator[tuple[str, str]]:
    """Yield ranks that do not fit each other."""
    if v["target_rank"] > v["init_rank"]:
        fix = f"must not exceed the initial rank ({v['init_rank']}): raise --init-rank"
        yield "target_rank", fix
    if method is not None and method.fixed_rank and v["init_rank"] != v["target_rank"]:
        fix = f"--method {v['method']} keeps one rank, --target-rank ({v['target_rank']})"
        yield "init_rank", fix


def _shards(v: Mapping[str, Any], method: MethodEntry | None) -> Iterator[tuple[str, str]]:
    """Yield what does not fit divided weights."""
    if method is not None and not method.has_ranks:
        yield "shard", f"--method {v['method']} trains the weights, and divides none"
    if v["quantize_base"]:
        yield "shard", "not together with --quantize-base, which rounds whole frozen weights"


def _base_precision(
    v: Mapping[str, Any], method: MethodEntry | None, *, quantized: bool
) -> Iterator[tuple[str, str]]:
    """Yield the problems of frozen weights in a precision of their own."""
    if method is not None and not method.has_ranks:
        fix = f"--method {v['method']} trains the weights themselves, in fp32; leave one out"
        yield "base_precision", fix
    both = method is not None and "quantize_base" in method.options and v["quantize_base"]
    if both and quantized:
        fix = "--quantize-base would quantize the same weights once more; leave one out"
        yield "base_precision", fix


def _criterion(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the problem of the criterion, given a known method and optimizer."""
    allowed, criterion = criteria_of(v["method"], v["optimizer"]), v["criterion"]
    if not allowed and criterion is not None:
        yield "criterion", f"--method {v['method']} has none"
    elif allowed and criterion not in allowed:
        names = ", ".join(allowed)
        if criterion in CRITERIA:
            fix = f"needs a posterior: use --optimizer {posterior_optimizers()}, or one of {names}"
        else:
            fix = f"choose one of {names}{nearest(str(criterion), allowed)}"
        yield "criterion", fix
