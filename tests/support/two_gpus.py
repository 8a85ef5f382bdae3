"""One of two processes on two GPUs, started by torchrun: is a captured step the eager one?

Prints a line of JSON a method: names of the tensors that differ, and why nothing was captured.
"""

from __future__ import annotations

import json
import logging
import sys

import torch

from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.execution.launch_environment import joined, place
from bayeslora_cli.execution.processes import Processes
from bayeslora_cli.execution.signals import Stop
from tests.training.test_step import TOTAL, batches, make_step

METHODS = [
    ("adalora", "ivon", "snr"),
    ("adalora", "adamw", "sensitivity"),
    ("lora", "adamw", None),
    ("full", "ivon", None),
    ("blora", "ivon", None),
]


def trained(
    method: tuple[str, str, str | None],
    model: str,
    precision: str,
    processes: Processes,
    device: torch.device,
    *,
    captured: bool,
) -> tuple[dict[str, torch.Tensor], str | None]:
    """All that 60 steps on batches of three widths leave, and what kept them from a graph."""
    seed = processes.seed(2021)

    def runner(noise):
        noise.manual_seed(seed)
        return GraphRunner([noise]) if captured else run_eagerly

    kind, optimizer, criterion = method
    step = make_step(
        model, optimizer, criterion, method=kind, device=str(device), precision=precision,
        runner=runner,
    )  # fmt: skip
    step.processes = processes
    if step.network.operands is not None:
        step.allocator.processes = processes
    torch.manual_seed(seed)
    for t in range(TOTAL):
        batch = batches(length=(6, 10, 17)[t % 3])[t]
        rows = torch.arange(8 if t % 7 else 1)  # now and then the second has none
        mine = processes.share(rows)
        part = {k: v[mine].to(device) for k, v in batch.items()}
        step(t, [part] if len(mine) else [])
    assert step.bad_step() is None
    processes.check_masks(TOTAL)
    processes.check_state(TOTAL, step.network.bank)
    parts = {"bank": step.network.bank, "optimizer": step.optimizer, "step": step}
    if step.allocator is not None:
        step.allocator.fetch_history()
        parts["allocator"] = step.allocator
    found = {f"{n}/{k}": v.clone() for n, p in parts.items() for k, v in p.tensors().items()}
    return found, getattr(step.runner, "failure", None)


def main() -> None:
    model, precision = sys.argv[1:]
    logging.basicConfig()
    with joined(place(), Stop()) as processes:
        device = processes.assign_device(torch.device("cuda"))
        torch.cuda.set_stream(torch.cuda.Stream(device))
        for method in METHODS:
            eager, _ = trained(method, model, precision, processes, device, captured=False)
            found, failure = trained(method, model, precision, processes, device, captured=True)
            differ = [name for name in eager if not torch.equal(eager[name], found[name])]
            all_differ = processes.gather(differ)
            if processes.first:
                print(json.dumps({"method": method, "differ": all_differ, "failure": failure}))
    place().exit(0)


if __name__ == "__main__":
    main()
