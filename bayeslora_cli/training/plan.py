"""What `train --dry-run` says: the run as it would be, and what it needs; nothing is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.resolution import Resolved
from bayeslora_cli.config.run_config import OPTIONS, SCHEDULED, flag
from bayeslora_cli.data.batching import steps_per_epoch
from bayeslora_cli.data.token_cache import encode_once
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.execution.device import pick_device
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.models.backbones.loading import Labels
from bayeslora_cli.runs.rank_report import kinds_of
from bayeslora_cli.training.memory_estimate import estimate
from bayeslora_cli.training.preparation import Prepared, learning_rate

POINTS = 8  # of the schedule, besides its first and last step


def plan(prepared: Prepared, resolved: Resolved, processes: int = 1) -> dict[str, Any]:
    """Everything there is to say of a run before it begins, as a JSON object.

    Args:
        processes: that share the batches; the memory is one's.
    Raises:
        UserError: a backbone or a device that cannot be had.
    """
    config, task, tokenizer = prepared.config, prepared.task, prepared.tokenizer
    assert config.schedule_steps is not None
    total, rows = config.schedule_steps, {n: len(e) for n, e in prepared.examples.items()}
    network = build_network(
        config,
        Labels(classes=task.classes),
        tokenizer,
        posterior=OPTIMIZERS[config.optimizer].posterior,
        device=torch.device("meta"),
    )
    train = tokenise(
        prepared.examples["train"],
        tokenizer,
        config.max_length,
        regression=task.regression,
        encode=encode_once,
    )
    longest = int(train.lengths.max())
    needed = estimate(
        network,
        config,
        rows=min(-(-config.batch_size // (config.grad_accum * processes)), rows["train"]),
        tokens=longest,
        token_types=train.token_types is not None,
        device=pick_device(config.device),
    )
    rate = learning_rate(config)
    course = find_method(config.method).dry_run(config, needed.matrices, needed.trainable)
    budget = course.budget
    phases = [
        {"phase": name, "first": first, "last": stop - 1}
        for name, first, stop in course.phases or ()
    ]
    steps = sorted({round(i * (total - 1) / (POINTS + 1)) for i in range(POINTS + 2)})
    values, typed = asdict(config), asdict(resolved.config)
    return {
        "run": str(prepared.run.path),
        "config": {
            flag(n): {
                "value": values[n],
                "source": resolved.sources[n]
                + (", scaled" if n in SCHEDULED and values[n] != typed[n] else ""),
            }
            for n in OPTIONS
        },
        "task": task.to_json(),
        "rows": rows,
        "longest_tokens": longest,
        "steps": total,
        "steps_per_epoch": steps_per_epoch(rows["train"], config.batch_size),
        "schedule": [
            {"step": step, "lr": rate(step)} | ({} if budget is None else {"budget": budget(step)})
            for step in steps
        ],
        **({} if course.phases is None else {"phases": phases}),
        "matrices": [dict(zip(("name", "in", "out"), m, strict=True)) for m in needed.matrices],
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
    }


def describe_plan(found: dict[str, Any]) -> str:
    """The plan as text: a block a subject, no control characters."""
    width = max(len(name) for name in found["config"])
    values = max(len(_shown(entry["value"])) for entry in found["config"].values())
    lines = ["Configuration"]
    for name, entry in found["config"].items():
        lines.append(f"  {name:{width}}  {_shown(entry['value']):{values}}  {entry['source']}")
    lines += ["", "Data"]
    lines += [f"  {name:{width}}  {rows:,} rows" for name, rows in found["rows"].items()]
    lines.append(f"  {'longest example':{width}}  {found['longest_tokens']} tokens")
    classes = found["task"]["classes"]
    lines.append(f"  {'classes':{width}}  {', '.join(classes) or 'none: regression'}")
    matrices = found["matrices"]
    kinds = kinds_of([m["name"] for m in matrices])
    counts = Counter((k, m["in"], m["out"]) for k, m in zip(kinds, matrices, strict=True))
    lines += ["", f"Adapted matrices: {len(matrices)}"]
    lines += [f"  {count:3} x {kind:8} {i} -> {o}" for (kind, i, o), count in counts.items()]
    parameters = found["parameters"]
    lines += ["", "Parameters"]
    for name, count in parameters.items():
        if count is None:
            continue
        share = "" if name == "backbone" else f"  {count / parameters['backbone']:.2%}"
        lines.append(f"  {name.replace('_', ' '):20} {count:>13,}{share}")
    lines += ["", f"Steps: {found['steps']:,}, {found['steps_per_epoch']:,} an epoch"]
    lines.append("      step            lr" + "   rank budget" * ("budget" in found["schedule"][0]))
    for point in found["schedule"]:
        text = f"  {point['step'] + 1:8,}  {point['lr']:12.6g}"
        lines.append(text + (f"  {point['budget']:12,}" if "budget" in point else ""))
    if "phases" in found:
        lines += ["", "Phases"]
    texts = find_method(found["config"]["--method"]["value"]).phase_texts
    for phase in found.get("phases", ()):
        name, between = phase["phase"], f"steps {phase['first'] + 1:,} to {phase['last'] + 1:,}"
        lines.append(f"  {name:8}  {between:24}  {texts[name]}")
    lines += ["", "Memory at a step's peak, at the least"]
    sizes = found["memory_bytes"]
    for name, size in sizes.items():
        shown = "not known" if size is None else f"{size / 2**20:10,.1f} MiB"
        lines.append(f"  {name.replace('_', ' '):24} {shown}")
    if sizes["activations"] is not None:
        lines.append(f"  {'together':24} {sum(sizes.values()) / 2**20:10,.1f} MiB")
    lines += ["", f"Nothing was trained. The run would be in {found['run']}"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
