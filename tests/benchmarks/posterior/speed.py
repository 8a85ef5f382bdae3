"""The page's sentence about a step's time in PEFT's world, from what `gpu_step.py` has printed.

The file is that of `python tests/benchmarks/gpu_step.py --precision bf16 --lengths 64 --rows
peft-adalora-adamw,peft-adalora-ivon-snr,peft-adalora-adamw-seldom,peft-adalora-ivon-snr-seldom`.
"""

from __future__ import annotations

from tests.benchmarks.posterior.page_text import Page

SIDES = {"AdamW, sensitivity": "adamw", "ivon-opt, snr": "snr"}
EVERY = {"": "at each step", ", allocated every 100 steps": "every 100 steps"}


def speed(page: Page, printed: str) -> None:
    """Write the table of IVON with snr beside AdamW with sensitivity, both in PEFT."""
    found = {}
    for line in printed.splitlines():
        if line.startswith("| PEFT AdaLoRA + "):
            label, ms, turns, _, _, _, kernels, _ = line.strip("| ").split(" | ")
            found[label.removeprefix("PEFT AdaLoRA + ")] = float(ms), turns, kernels
    cells = []
    for ending, when in EVERY.items():
        cell = [f"an allocation {when}"]
        for side, short in SIDES.items():
            (ms, turns, kernels), name = found[side + ending], f"speed/{when}/{short}"
            low, high = map(float, turns.split(" – "))
            cell += [
                page.number(f"{name}/ms", f"{ms:.0f}")
                + " (" + page.number(f"{name}/turns", f"{low:.0f} to {high:.0f}") + ")",
                page.number(f"{name}/kernels", kernels),
            ]  # fmt: skip
        adamw, snr = (found[side + ending][0] for side in SIDES)
        cells.append([*cell, page.number(f"speed/{when}/ratio", f"{snr / adamw:.2f}")])
    page.table(["in PEFT, on an H200", "AdamW, sensitivity: ms", "kernels",
                "`ivon-opt`, snr: ms", "kernels", "of AdamW's time"], cells)  # fmt: skip
