"""What the check of a run's adapter by plain PEFT costs: its share of a whole run.

    python tests/benchmarks/adapter_check.py [--preset quickstart]

It prints seconds of processor time, which a busy machine changes little: of the check, the first
one in a process, and of the whole process, imports included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import bayeslora_cli as bl
from bayeslora_cli.training import artifacts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quickstart")
    asked = parser.parse_args()
    seconds, check = [], artifacts.adapter_problem

    def timed(*arguments: Any) -> str | None:
        start = time.process_time()
        problem = check(*arguments)
        seconds.append(time.process_time() - start)
        return problem

    artifacts.adapter_problem = timed
    with tempfile.TemporaryDirectory() as directory:
        bl.train(preset=asked.preset, output=directory, device="cpu")
    whole = time.process_time()
    print(f"check {seconds[0]:.2f} s of {whole:.1f} s, {seconds[0] / whole:.1%}")


if __name__ == "__main__":
    main()
