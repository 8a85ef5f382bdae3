"""The rows of `gpu_step.py`: this engine's steps, and what people use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peers import Step, peft_adalora_adamw, peft_adalora_ivon, peft_adalora_ivon_snr
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from bayeslora_cli.bayes.criteria import load_criterion
from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import padded_width
from bayeslora_cli.data.packing import token_batch
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.execution.compilation import compile_blocks, uncompiled
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.methods.adalora.rank_allocator import RankAllocator
from bayeslora_cli.methods.allocation import Allocator
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.schedules import LearningRate, RankBudget
from bayeslora_cli.models.backbones.deberta_attention import replace_attention
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.step import TrainStep

TARGETS = ["query_proj", "key_proj", "value_proj", "query", "key", "value", "dense"]
T_INIT = 1  # the first step without an allocation
LONGEST = 256  # tokens of an example
EXAMPLES = 392_702  # MNLI's, IVON's effective sample size
SIDE_BY_SIDE = True
"""Whether kernels are compiled side by side before the first step."""
BASE, LORA = "peft-adalora-adamw", "lora-adamw"  # what the ratios are to

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a row is built for."""

    model: str
    device: torch.device
    precision: str
    total: int
    """Steps of the pretended run; pruning lasts to two thirds of it."""


# ---- this engine


def engine(
    method: str,
    optimizer: str,
    criterion: str | None,
    *,
    captured: bool = True,
    compiled: bool = True,
    force: bool = False,
    **options: Any,
) -> Callable[[Setting], Step]:
    """The engine's step, at the paper's ranks; on a GPU in graphs, its blocks compiled.

    Args:
        force: compile on a CPU as well.
        options: further ones of the run.
    """

    def build(s: Setting) -> Step:
        config = RunConfig(
            model=s.model, method=method, optimizer=optimizer, criterion=criterion,
            init_rank=3 if method in ("adalora", "blora") else 2,
            precision=s.precision, max_length=LONGEST,
            weight_decay=1e-8 if optimizer == "ivon" else 0.0,
            t_init=T_INIT, t_final=s.total // 3, schedule_steps=s.total,
            **options,
        )  # fmt: skip
        maker = OPTIMIZERS[optimizer]
        network = build_network(
            config, build_objective("classification", ("a", "b")), SimpleNamespace(pad_token_id=0),
            posterior=maker.posterior, device=s.device,
        )  # fmt: skip
        bank, matrices = network.bank, len(network.bank.matrices)
        budget = RankBudget(
            initial=3 * matrices, target=2 * matrices, t_init=T_INIT, t_final=s.total // 3,
            delta_t=1, total=s.total,
        )  # fmt: skip
        noise = torch.Generator(s.device).manual_seed(0)
        allocator: Allocator | None = None
        if network.operands is not None:
            allocator = find_method(method).allocator(config, network, noise)
        elif criterion is not None:
            allocator = RankAllocator(bank, load_criterion(criterion), budget)
        on_gpu = s.device.type == "cuda"
        step = TrainStep(
            network,
            build_optimizer(config, bank, EXAMPLES, noise),
            allocator,
            learning_rate=LearningRate(
                peak=0.4 if optimizer == "ivon" else 5e-4, total=s.total, warmup=1
            ),
            orth_reg=0.1 if method == "adalora" else 0.0,
            samples=1,
            runner=GraphRunner([noise]) if captured and on_gpu else run_eagerly,
        )
        network.module.train()
        if compiled and (on_gpu or force):
            compile_blocks(network.module, dynamic=None if network.packed else False)
            step.compile()
        laid: Callable[[Batch], Batch] = Packed(s.device) if network.packed else widened
        ahead = on_gpu and SIDE_BY_SIDE

        def run(t: int, batch: Batch) -> None:
            nonlocal ahead
            batch = laid(batch) if on_gpu or network.packed else batch
            if ahead:  # as a run does
                from bayeslora_cli.models.kernels.side_by_side_triton import compiled_side_by_side

                with uncompiled(), compiled_side_by_side():
                    step.take_part(batch)
                ahead = False
            step(t, [batch])

        return run

    return build


def widened(batch: Batch) -> Batch:
    """A batch at the width to which the engine pads it on a GPU."""
    width = batch["input_ids"].shape[1]
    more = padded_width(width, LONGEST) - width
    return {k: F.pad(v, (0, more)) if v.dim() == 2 else v for k, v in batch.items()}


class Packed:
    """Packs batches as a run does: on the CPU, anew at each step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.splits: dict[int, TokenisedSplit] = {}

    def __call__(self, batch: Batch) -> Batch:
        """Return the rows of a padded batch one after the other, on the device."""
        split = self.splits.get(id(batch))
        if split is None:
            inside = batch["attention_mask"].bool().cpu()
            offsets = torch.cat((torch.zeros(1, dtype=torch.int64), inside.sum(1).cumsum(0)))
            split = self.splits[id(batch)] = TokenisedSplit(
                tokens=batch["input_ids"].cpu()[inside].int(), offsets=offsets, token_types=None,
                labels=batch["labels"].cpu(), pad_id=0, packed=True,
            )  # fmt: skip
        return token_batch(split, torch.arange(len(split)), 0, self.device)


# ---- peers


def under_autocast(build: Callable[[Setting], Step]) -> Callable[[Setting], Step]:
    """The same with autocast where the precision is bf16; only matrix products heed it."""

    def built(s: Setting) -> Step:
        step = build(s)

        def cast(t: int, batch: Batch) -> None:
            with torch.autocast(s.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
                step(t, batch)

        return cast

    return built


def peft_lora_adamw(s: Setting) -> Step:
    """PEFT LoRA + torch's AdamW."""
    base = AutoModelForSequenceClassification.from_pretrained(s.model)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, lora_alpha=32, target_modules=TARGETS)
    peft = get_peft_model(base, config).to(s.device).train()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-4)

    def step(t: int, batch: Batch) -> None:
        peft(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def forward(*, replaced: bool) -> Callable[[Setting], Step]:
    """The backbone's forward pass alone, without adapters or gradients, dropout on."""

    def build(s: Setting) -> Step:
        module: Any = AutoModelForSequenceClassification.from_pretrained(s.model)
        if replaced:
            assert replace_attention(module)
        dtype = torch.bfloat16 if s.precision == "bf16" else torch.float32
        module.to(s.device, dtype).train()

        @torch.no_grad()
        def step(t: int, batch: Batch) -> None:
            module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

        return step

    return build


ROWS: dict[str, tuple[str, Callable[[Setting], Step]]] = {
    BASE: (
        "PEFT AdaLoRA + AdamW, sensitivity",
        under_autocast(
            lambda s: peft_adalora_adamw(s.model, TARGETS, s.total, T_INIT, str(s.device))
        ),
    ),
    "peft-adalora-ivon": (
        "PEFT AdaLoRA + ivon-opt, sensitivity",
        under_autocast(
            lambda s: peft_adalora_ivon(s.model, TARGETS, s.total, T_INIT, str(s.device))
        ),
    ),
    "peft-adalora-ivon-snr": (
        "PEFT AdaLoRA + ivon-opt, snr",
        under_autocast(
            lambda s: peft_adalora_ivon_snr(s.model, TARGETS, s.total, T_INIT, str(s.device))
        ),
    ),
    "peft-adalora-adamw-seldom": (
        "PEFT AdaLoRA + AdamW, sensitivity, allocated every 100 steps",
        under_autocast(
            lambda s: peft_adalora_adamw(s.model, TARGETS, s.total, T_INIT, str(s.device), 100)
        ),
    ),
    "peft-adalora-ivon-snr-seldom": (
        "PEFT AdaLoRA + ivon-opt, snr, allocated every 100 steps",
        under_autocast(
            lambda s: peft_adalora_ivon_snr(s.model, TARGETS, s.total, T_INIT, str(s.device), 100)
        ),
    ),
    "peft-lora-adamw": ("PEFT LoRA + AdamW", under_autocast(peft_lora_adamw)),
    "forward": ("plain forward pass", forward(replaced=False)),
    "forward-ours": ("forward pass, bayeslora's attention", forward(replaced=True)),
    "adalora-ivon": ("bayeslora AdaLoRA + IVON, snr", engine("adalora", "ivon", "snr")),
    "adalora-ivon-uncompiled": (
        "the same, not compiled",
        engine("adalora", "ivon", "snr", compiled=False),
    ),
    "adalora-ivon-packed": (
        "the same, packed",
        engine("adalora", "ivon", "snr", packing="on"),
    ),
    "adalora-ivon-packed-uncompiled": (
        "the same, packed, not compiled",
        engine("adalora", "ivon", "snr", compiled=False, packing="on"),
    ),
    "adalora-ivon-eager": (
        "the same, kernel by kernel",
        engine("adalora", "ivon", "snr", compiled=False, captured=False),
    ),
    "adalora-adamw": (
        "bayeslora AdaLoRA + AdamW, sensitivity",
        engine("adalora", "adamw", "sensitivity"),
    ),
    "adalora-adamw-graphs": (
        "the same, not compiled",
        engine("adalora", "adamw", "sensitivity", compiled=False),
    ),
    "adalora-adamw-packed": (
        "the same, packed, compiled",
        engine("adalora", "adamw", "sensitivity", packing="on"),
    ),
    "adalora-adamw-packed-uncompiled": (
        "the same, packed, not compiled",
        engine("adalora", "adamw", "sensitivity", compiled=False, packing="on"),
    ),
    LORA: ("bayeslora LoRA + AdamW", engine("lora", "adamw", None)),
    "blora-adamw": ("bayeslora B-LoRA + AdamW", engine("blora", "adamw", None)),
    "blora-adamw-graphs": (
        "the same, not compiled",
        engine("blora", "adamw", None, compiled=False),
    ),
    "blora-adamw-packed": (
        "the same, packed, compiled",
        engine("blora", "adamw", None, packing="on"),
    ),
    "blora-adamw-base-packed": (
        "the same, packed, compiled, --quantize-base",
        engine("blora", "adamw", None, packing="on", quantize_base=True),
    ),
    "blora-adamw-packed-uncompiled": (
        "the same, packed, not compiled",
        engine("blora", "adamw", None, compiled=False, packing="on"),
    ),
    "blora-adamw-base-packed-uncompiled": (
        "the same, packed, not compiled, --quantize-base",
        engine("blora", "adamw", None, compiled=False, packing="on", quantize_base=True),
    ),
    "blora-adamw-base": (
        "bayeslora B-LoRA + AdamW, --quantize-base",
        engine("blora", "adamw", None, quantize_base=True),
    ),
    "blora-ivon": ("bayeslora B-LoRA + IVON", engine("blora", "ivon", None)),
}
