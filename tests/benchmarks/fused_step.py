"""Today's separate products and the fused kernels in a whole step, in turn; gradients compared.

python tests/benchmarks/fused_step.py [--lengths 64,256] [--tiny --device cpu]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from types import SimpleNamespace
from typing import Any

import gpu_step
import torch
from gpu_rows import ROWS, engine
from measure import describe, environment
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.models.kernels.low_rank import tiles
from bayeslora_cli.tasks.objectives.objective import build_objective

PAYS = tiles.pays
TESTS = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/models/kernels/low_rank"]


def use(*, fused: bool) -> None:
    """Switch the kernels on or off for what is built next."""
    tiles.pays = PAYS if fused else lambda *_: False


def gradients(model: str, device: torch.device) -> list[Tensor]:
    """The flat gradients of two passes over the same batch, without dropout."""
    config = RunConfig(
        model=model, method="adalora", optimizer="adamw", criterion="sensitivity", init_rank=3,
        precision="bf16", t_init=1, t_final=2, schedule_steps=10,
    )  # fmt: skip
    network = build_network(
        config, build_objective("classification", ("a", "b")), SimpleNamespace(pad_token_id=0),
        posterior=False, device=device,
    )  # fmt: skip
    bank = network.bank
    drawn = torch.Generator(device).manual_seed(1)
    bank.theta[: bank.adapter_end].add_(
        0.05 * torch.randn(bank.adapter_end, generator=drawn, device=device)
    )
    bank.publish()
    network.module.eval()
    batch = gpu_step.make_batches("64", 1, 32, 100, device)[0]
    found = []
    for _ in range(2):
        bank.zero_local()
        network.objective.loss(network.logits(batch), batch).backward()
        bank.collect()
        found.append(bank.local[: bank.adapter_end].clone())
    return found


def main() -> None:
    """Print gradients' differences and the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="64,256")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    own = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(own.device)
    start = time.perf_counter()
    tests = subprocess.Popen(TESTS, stdout=subprocess.PIPE, text=True)
    torch.manual_seed(0)
    print(describe(environment(device)))
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as model:
        AutoModelForSequenceClassification.from_config(
            DebertaV2Config(**gpu_step.ARCHITECTURE | (gpu_step.TINY if own.tiny else {}))
        ).save_pretrained(model)
        exact = None
        for fused in (False, True):
            use(fused=fused)
            first, second = gradients(model, device)
            exact = first if exact is None else exact
            far = float((first - exact).norm() / exact.norm())
            print(
                f"fused {fused}: gradients differ by {far:.1e} of their norm "
                f"{float(exact.norm()):.3g}; to the bit again: {torch.equal(first, second)}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
        if tests.stdout is not None:
            print("\n".join(tests.stdout.read().splitlines()[-12:]))
        print(f"tests: {tests.wait()}, {time.perf_counter() - start:.0f} s", flush=True)
        for name, fused in (("separate", False), ("fused", True)):

            def build(s: Any, fused: bool = fused) -> Any:
                use(fused=fused)
                return engine("adalora", "ivon", "snr", compiled=False)(s)

            ROWS[name] = (name, build)
        options: Any = SimpleNamespace(
            device=own.device, tiny=own.tiny, batch_size=32, warm_up=2, repeats=own.repeats,
            inner=5, mnli_batches=4, model="deberta", deterministic=False,
        )  # fmt: skip
        for workload in own.lengths.split(","):
            rows = gpu_step.measure(["separate", "fused"], workload, model, "bf16", options)
            print(f"\n{workload} tokens, bf16, not compiled, captured\n")
            print(gpu_step.table(rows, workload), flush=True)
            print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
