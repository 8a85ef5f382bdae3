"""The page's table of a step's time in PEFT's world, from what `gpu_step.py --json` has written.

Its rows are peft-adalora-adamw and peft-adalora-ivon-snr, and the same with the ending -seldom.
They took turns, so that a ratio is one of two turns side by side.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from tests.benchmarks.posterior.page_text import Page

EVERY = {"": "at each step", "-seldom": "every 100 steps"}


def speed(page: Page, measured: dict[str, Any]) -> None:
    """Write the table of IVON with snr beside AdamW with sensitivity, both in PEFT."""
    rows = {row["row"]: row for row in measured["results"]}
    cells = []
    for ending, when in EVERY.items():
        cell, sides = [f"an allocation {when}"], []
        for row in ("adamw", "ivon-snr"):
            found, name = rows[f"peft-adalora-{row}{ending}"], f"speed/{when}/{row}"
            sides.append(found["ms"])
            cell += [
                page.number(f"{name}/ms", f"{median(found['ms']):.0f}")
                + " (" + page.number(f"{name}/turns", spread(found["ms"], 0)) + ")",
                page.number(f"{name}/kernels", str(found["work"]["kernels"])),
            ]  # fmt: skip
        ratios = [ivon / adamw for adamw, ivon in zip(*sides, strict=True)]
        name = f"speed/{when}/ratio"
        cell.append(page.number(name, f"{median(ratios):.2f}")
                    + " (" + page.number(f"{name}/turns", spread(ratios, 2)) + ")")  # fmt: skip
        cells.append(cell)
    page.table(["in PEFT, on an H200", "AdamW, sensitivity: ms", "kernels",
                "`ivon-opt`, snr: ms", "kernels", "of AdamW's time"], cells)  # fmt: skip


def spread(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
