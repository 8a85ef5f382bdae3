"""Describes a run before it is trained, for `train --dry-run`: what it would do and need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bayeslora_cli.config.catalogue import OBJECTIVES, OPTIMIZERS, RECOMPUTED
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.run_config import OPTIONS, SCHEDULED, RunConfig, flag
from bayeslora_cli.data.batching import largest_batch, steps_per_epoch
from bayeslora_cli.data.counted_rows import counted_facts, counted_text, example_text
from bayeslora_cli.data.splits import check_tokens
from bayeslora_cli.execution.device import pick_device
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.backbones.targets import plain_products
from bayeslora_cli.runs.rank_report import FLOAT_BITS, kinds_of
from bayeslora_cli.tasks.class_balance import weights_text
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.task import Task
from bayeslora_cli.training.evaluations import evaluations_of
from bayeslora_cli.training.memory.alternatives import Alternative, alternatives, cheapest
from bayeslora_cli.training.memory.estimate import estimate
from bayeslora_cli.training.preparation import PreparedRun, learning_rate
from bayeslora_cli.training.start.warm_start import find_start

RESERVED = 2**29
"""Bytes of a GPU that CUDA itself takes."""
_OPERATIONS = {
    "adapters": "adapters",
    "with_base": "and adapted matrices",
    "model": "and other linear layers",
}
POINTS = 8
"""Number of steps of the schedule that are shown, besides the first and the last one."""
LONGEST = 24
"""Characters of an option's value up to which sources are aligned behind it."""


def dry_run(prepared: PreparedRun, resolved: Resolved, processes: int = 1) -> dict[str, Any]:
    """Describe a run before it begins, as a JSON object: options, data, schedule, sizes.

    Args:
        processes: number of processes that share the batches; the memory is that of one.
    Raises:
        UserError: the backbone cannot be loaded, or there is no such device.
    """
    config, task = prepared.config, prepared.task
    splits = prepared.tokens()
    train = splits["train"]
    rows = {name: len(examples) for name, examples in prepared.examples.items()}
    rows["train"] -= train.left_out
    longest = int(train.lengths.max())
    device = pick_device(config.device)
    largest = min(-(-config.batch_size // (config.grad_accum * processes)), rows["train"])
    build = partial(
        build_network,
        objective=objective_of(task),
        tokenizer=prepared.tokenizer,
        posterior=OPTIMIZERS[config.optimizer].posterior,
        device=torch.device("meta"),
    )
    network = build(config)
    check_tokens(network.module, config.model, prepared.tokens().values())
    start = find_start(config, network).describe() if config.start_from is not None else None
    batch = largest_batch(train, largest, device)
    on_gpu = device.type == "cuda"
    needed = estimate(network, config, batch=batch, device=device, whole_step=on_gpu)
    ways: list[Alternative] = []
    if on_gpu and needed.peak is not None and network.adapters:
        ways = alternatives(config, build, batch=batch, device=device, processes=max(2, processes))
    course = find_method(config.method).dry_run(config, needed.matrices, needed.trainable)
    operations = None
    if not network.objective.entry.head:
        others = FLOAT_BITS**2 * plain_products(network.module)
        operations = find_method(config.method).bit_operations(config, needed.matrices, others)
    phases = [
        {"phase": name, "first": first, "last": stop - 1}
        for name, first, stop in course.phases or ()
    ]
    return {
        "run": str(prepared.run.path),
        "config": _options(config, resolved),
        "task": replace(task, held_out=()).to_json(),
        "rows": rows,
        "longest_tokens": longest,
        "truncated": {
            name: dict(zip(("rows", "longest_tokens"), split.truncated(), strict=True))
            for name, split in splits.items()
        },
        **counted_facts(splits, prepared.tokenizer, largest, config.seed),
        **({"class_weights": weights} if (weights := prepared.class_weights()) else {}),
        **_stopping(config, steps_per_epoch(rows["train"], config.batch_size), course.final_step),
        "steps": config.total_steps,
        "steps_per_epoch": steps_per_epoch(rows["train"], config.batch_size),
        "schedule": _schedule(config, course.budget),
        **({} if course.phases is None else {"phases": phases}),
        **({} if operations is None else {"bit_operations": dict(operations)}),
        "matrices": [dict(zip(("name", "in", "out"), m, strict=True)) for m in needed.matrices],
        **({} if start is None else {"start": start}),
        "parameters": {
            "backbone": needed.parameters,
            "trained_at_first": needed.trainable,
            "trained_at_the_end": course.trained_at_the_end,
        },
        "memory_bytes": {
            "weights": needed.weights,
            "trained_and_optimizer": needed.trained,
            "activations": needed.activations,
        },
        **({} if needed.peak is None else _on_gpu(config, needed.peak, ways, device, processes)),
    }


def _on_gpu(
    config: RunConfig, peak: int, ways: list[Alternative], device: torch.device, processes: int
) -> dict[str, Any]:
    """Return the peak of a step on a GPU, and that of every way to save memory."""
    room = torch.cuda.get_device_properties(device).total_memory - RESERVED
    mine = config.gradient_checkpointing, config.base_precision, config.shard
    for way in ways:
        if (way.gradient_checkpointing, way.base_precision, way.shard) == mine:
            peak = way.bytes
    fitting = None if peak <= room else cheapest(ways, room, shards=processes > 1)
    return {
        "peak_bytes": peak,
        "device_bytes": room,
        "fits": peak <= room,
        "cheapest_that_fits": None if fitting is None else fitting.flags(),
        "ways_to_save_memory": [asdict(way) | {"options": way.flags()} for way in ways],
        "divided_among": max(2, processes),
    }


def _options(config: RunConfig, resolved: Resolved) -> dict[str, dict[str, Any]]:
    """Return every option's final value, and where it comes from."""
    values, typed = asdict(config), asdict(resolved.config)
    found = {}
    for name in OPTIONS:
        scaled = name in SCHEDULED and values[name] != typed[name]
        source = resolved.sources[name] + (", scaled" if scaled else "")
        found[flag(name)] = {"value": values[name], "source": source}
    return found


def _stopping(config: RunConfig, per_epoch: int, final_step: int) -> dict[str, Any]:
    """Return how early stopping works in the run, by `early_stopping`; {} without --patience."""
    if config.patience is None:
        return {}
    found = evaluations_of(config, per_epoch, final_step)
    facts = {"patience": config.patience, "after_step": final_step, "evaluations": found.counted}
    return {"early_stopping": facts}


def _schedule(config: RunConfig, budget: RankBudget | None) -> list[dict[str, Any]]:
    """Return learning rate and rank budget at the first step, the last one, and some between."""
    rate, last = learning_rate(config), config.total_steps - 1
    return [
        {"step": step, "lr": rate(step)} | ({} if budget is None else {"budget": budget(step)})
        for step in sorted({round(i * last / (POINTS + 1)) for i in range(POINTS + 2)})
    ]


# ---- as text


def describe_plan(found: dict[str, Any]) -> str:
    """Format the result of `dry_run` as text: one block per subject, no control characters."""
    width = max(len(name) for name in found["config"])
    blocks = [
        _options_text(found["config"], width),
        _data_text(found, width),
        example_text(found),
        _matrices_text(found["matrices"]),
        [found["start"]] if "start" in found else [],
        _parameters_text(found["parameters"]),
        _schedule_text(found),
        _stopping_text(found.get("early_stopping")),
        _phases_text(found.get("phases", ()), found["config"]["--method"]["value"]),
        _operations_text(found.get("bit_operations")),
        _memory_text(found),
        [f"Nothing was trained. The run would be in {found['run']}"],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _options_text(options: dict[str, Any], width: int) -> list[str]:
    # paths may be longer than a line; they alone push their source to the right
    lengths = [len(_shown(entry["value"])) for entry in options.values()]
    values = max(length for length in lengths if length <= LONGEST)
    return [
        "Configuration",
        *(
            f"  {name:{width}}  {_shown(entry['value']):{values}}  {entry['source']}"
            for name, entry in options.items()
        ),
    ]


def _data_text(found: dict[str, Any], width: int) -> list[str]:
    task = Task.from_json(found["task"], "the plan")
    return [
        "Data",
        *(f"  {name:{width}}  {rows:,} rows" for name, rows in found["rows"].items()),
        f"  {'longest example':{width}}  {found['longest_tokens']} tokens",
        *(
            f"  {f'cut of {name}':{width}}  {cut['rows']:,} of {found['rows'][name]:,} rows, the "
            f"longest has {cut['longest_tokens']:,} tokens"
            for name, cut in found["truncated"].items()
            if cut["rows"]
        ),
        *counted_text(found, width),
        f"  {'best evaluation by':{width}}  {task.selecting}",
        f"  {'classes':{width}}  {', '.join(task.classes)}"
        if task.classes
        else f"  {'predicted':{width}}  {OBJECTIVES[task.objective].predicts}",
        *(
            [f"  {'weights in the loss':{width}}  {weights_text(found['class_weights'])}"]
            if "class_weights" in found
            else []
        ),
    ]


def _matrices_text(matrices: list[dict[str, Any]]) -> list[str]:
    kinds = kinds_of([m["name"] for m in matrices])
    counts = Counter((k, m["in"], m["out"]) for k, m in zip(kinds, matrices, strict=True))
    return [
        f"Adapted matrices: {len(matrices)}",
        *(f"  {count:3} x {kind:8} {i} -> {o}" for (kind, i, o), count in counts.items()),
    ]


def _parameters_text(parameters: dict[str, int | None]) -> list[str]:
    backbone, lines = parameters["backbone"], ["Parameters"]
    assert backbone is not None
    for name, count in parameters.items():
        if count is not None:
            share = "" if name == "backbone" else f"  {count / backbone:.2%}"
            lines.append(f"  {name.replace('_', ' '):20} {count:>13,}{share}")
    return lines


def _schedule_text(found: dict[str, Any]) -> list[str]:
    points = found["schedule"]
    lines = [
        f"Steps: {found['steps']:,}, {found['steps_per_epoch']:,} per epoch",
        "      step            lr" + "   rank budget" * ("budget" in points[0]),
    ]
    for point in points:
        text = f"  {point['step'] + 1:8,}  {point['lr']:12.6g}"
        lines.append(text + (f"  {point['budget']:12,}" if "budget" in point else ""))
    return lines


def _stopping_text(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    ranks = f" from step {found['after_step'] + 1:,} on, when the ranks are final"
    return [
        "Early stopping",
        f"  after {found['patience']} evaluations without a better one, of the "
        f"{found['evaluations']}" + ranks * (found["after_step"] >= 0),
    ]


def _phases_text(phases: Sequence[dict[str, Any]], method: str) -> list[str]:
    texts = find_method(method).phase_texts
    lines = ["Phases"] if phases else []
    for phase in phases:
        name, between = phase["phase"], f"steps {phase['first'] + 1:,} to {phase['last'] + 1:,}"
        lines.append(f"  {name:8}  {between:24}  {texts[name]}")
    return lines


def _operations_text(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = ["Bit operations per token", "                          first, 32 bits       at least"]
    for name, title in _OPERATIONS.items():
        lines.append(f"  {title:24}{found[name]:14,}  {found[f'{name}_least']:13.2%}")
    return lines


def _memory_text(found: dict[str, Any]) -> list[str]:
    sizes, peak = found["memory_bytes"], found.get("peak_bytes")
    lines = ["Memory at a step's peak" + ", at least" * (peak is None)]
    for name, size in sizes.items():
        shown = "not known" if size is None else f"{size / 2**20:10,.1f} MiB"
        lines.append(f"  {name.replace('_', ' '):24} {shown}")
    known = [size for size in sizes.values() if size is not None]
    if peak is not None:
        lines.append(f"  {'with temporary tensors':24} {peak / 2**20:10,.1f} MiB")
        return lines + _ways_text(found)
    if len(known) == len(sizes):
        lines.append(f"  {'together':24} {sum(known) / 2**20:10,.1f} MiB")
    return lines


def _ways_text(found: dict[str, Any]) -> list[str]:
    """Tabulate the peaks of all combinations; say whether this run fits, and if not, what would."""
    ways, room = found["ways_to_save_memory"], found["device_bytes"] / 2**30
    lines = []
    if not found["fits"]:
        options = found["cheapest_that_fits"]
        lines.append(f"  This is more than the GPU has, {room:,.1f} GiB. " + (
            f"The fastest that fits: {options}" if options else "Nothing below fits on it: take "
            "more --grad-accum, a lower --max-length, or more GPUs with --shard"
        ))  # fmt: skip
    bases = list(dict.fromkeys(way["base_precision"] for way in ways))
    for shard in (False, True) if ways else ():
        title = f"--shard, {found['divided_among']} processes" if shard else "GiB of each process"
        lines.append(f"  {title:24}" + "".join(f"{base or 'as it is':>10}" for base in bases))
        for what in RECOMPUTED:
            sizes = {
                way["base_precision"]: f"{way['bytes'] / 2**30:10,.2f}" for way in ways
                if (way["gradient_checkpointing"], way["shard"]) == (what, shard)
            }  # fmt: skip
            cells = "".join(sizes.get(base, f"{'-':>10}") for base in bases)
            lines.append(f"    recomputed: {what:10}" + cells)
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
