"""Describes the memory that a run needs on a GPU, as facts of a dry run and as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, RECOMPUTED, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.training.memory.alternatives import Alternative, cheapest


def on_gpu(
    config: RunConfig, peak: int, ways: list[Alternative], room: int, processes: int
) -> dict[str, Any]:
    """Return the peak of a step on a GPU, and that of every way to save memory.

    Args:
        room: bytes that the GPU has for it.
    """
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


def memory_text(found: dict[str, Any], *, head: bool) -> list[str]:
    """Format what a dry run found about memory.

    Args:
        head: whether the backbone has a head; those without one are often larger than a GPU.
    """
    sizes, peak = found["memory_bytes"], found.get("peak_bytes")
    lines = ["Memory at a step's peak" + ", at least" * (peak is None)]
    for name, size in sizes.items():
        shown = "not known" if size is None else f"{size / 2**20:10,.1f} MiB"
        lines.append(f"  {name.replace('_', ' '):24} {shown}")
    known = [size for size in sizes.values() if size is not None]
    if peak is not None:
        lines.append(f"  {'with temporary tensors':24} {peak / 2**20:10,.1f} MiB")
        if found.get("without_gpu"):
            more = (
                "on padded rows; a GPU needs less" if head else "some 5% more than a GPU's at most"
            )
            lines.append(f"  A CPU's pass, as no GPU is here: {more}")
            lines += _needs_text(found)
        return lines + _ways_text(found)
    if len(known) == len(sizes):
        lines.append(f"  {'together':24} {sum(known) / 2**20:10,.1f} MiB")
    if found.get("without_gpu") and not head:
        lines.append("  Whether it fits on a GPU of 80 GiB, and what would: --gpu-memory 80")
    return lines


def _needs_text(found: dict[str, Any]) -> list[str]:
    """Tell which precisions not every GPU computes with."""
    bases = dict.fromkeys(way["base_precision"] for way in found["ways_to_save_memory"])
    forms = {n: implementation(BASE_PRECISIONS[n].implementation) for n in bases if n is not None}
    needs = {n: form.least_capability for n, form in forms.items() if form.least_capability}
    return [
        f"  {name} needs a GPU of compute capability {'.'.join(map(str, least))} or later"
        for name, least in needs.items()
    ]


def _ways_text(found: dict[str, Any]) -> list[str]:
    """Tabulate the peaks of all combinations; say whether this run fits, and if not, what would."""
    ways, room = found["ways_to_save_memory"], found["device_bytes"] / 2**30
    lines = []
    if not found["fits"]:
        options = found["cheapest_that_fits"]
        lines.append(f"  This is more than the GPU has for tensors, {room:,.1f} GiB. " + (
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
