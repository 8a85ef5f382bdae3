"""Describes a run before it is trained, for `train --dry-run`: what it would do and need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from bayeslora_cli.config.catalogue import OBJECTIVES, OPTIMIZERS
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.run_config import OPTIONS, SCHEDULED, RunConfig, flag
from bayeslora_cli.data.batching import largest_batch, steps_per_epoch
from bayeslora_cli.data.counted_rows import counted_facts, counted_text, example_text
from bayeslora_cli.data.splits import check_tokens
from bayeslora_cli.execution.device import pick_device
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import DryRunFacts, find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.schedules import RankBudget
from bayeslora_cli.models.backbones.targets import plain_products
from bayeslora_cli.runs.rank_report import FLOAT_BITS, kinds_of
from bayeslora_cli.tasks.class_balance import weights_text
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.task import Task
from bayeslora_cli.training.evaluations import evaluations_of
from bayeslora_cli.training.memory.alternatives import Alternative, alternatives
from bayeslora_cli.training.memory.described import memory_text, on_gpu
from bayeslora_cli.training.memory.estimate import Estimate, estimate
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


def dry_run(
    prepared: PreparedRun, resolved: Resolved, processes: int = 1, gpu_memory: float | None = None
) -> dict[str, Any]:
    """Describe a run before it begins, as a JSON object: options, data, schedule, sizes.

    Args:
        processes: number of processes that share the batches; the memory is that of one.
        gpu_memory: GiB of the GPU that the run is meant for; None: that of this machine's GPU, if
            it has one.
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
    room = _room(device, gpu_memory)
    needed = estimate(network, config, batch=batch, device=device, whole_step=room is not None)
    ways: list[Alternative] = []
    if room is not None and needed.peak is not None and network.adapters:
        ways = alternatives(config, build, batch=batch, device=device, processes=max(2, processes))
    course = find_method(config.method).dry_run(config, needed.matrices, needed.trainable)
    told = room is not None or not network.objective.entry.head
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
        **_phases(course),
        **_bit_operations(config, network, needed),
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
        **(
            {}
            if room is None or needed.peak is None
            else on_gpu(config, needed.peak, ways, room, processes)
        ),
        # said of a GPU that is asked about, and of models that are often larger than one
        **({"without_gpu": True} if told and device.type != "cuda" else {}),
    }


def _room(device: torch.device, gpu_memory: float | None) -> int | None:
    """Return the bytes that a run may take of the GPU that it is meant for; None: of no GPU."""
    if gpu_memory is not None:
        return round(gpu_memory * 2**30) - RESERVED
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total - RESERVED
    return None


def _phases(course: DryRunFacts) -> dict[str, Any]:
    """Describe the phases by their first and last steps; {}: the method has none."""
    if course.phases is None:
        return {}
    return {
        "phases": [
            {"phase": name, "first": first, "last": stop - 1} for name, first, stop in course.phases
        ]
    }


def _bit_operations(config: RunConfig, network: Network, needed: Estimate) -> dict[str, Any]:
    """Count the bit operations of a language model; {}: the method counts none."""
    if network.objective.entry.head:
        return {}
    others = FLOAT_BITS**2 * plain_products(network.module)
    found = find_method(config.method).bit_operations(config, needed.matrices, others)
    return {} if found is None else {"bit_operations": dict(found)}


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
        memory_text(found, head=OBJECTIVES[_task(found).objective].head),
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
    task = _task(found)
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


def _task(found: dict[str, Any]) -> Task:
    return Task.from_json(found["task"], "the plan")


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


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
