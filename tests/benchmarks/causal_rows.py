"""The rows of `causal_step.py`: this engine's steps on packed rows, and what people use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from decoder_sizes import Size
from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import BASE_PRECISIONS, OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.batching import Feed
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.execution.compilation import compile_blocks
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.training.preparation import learning_rate
from bayeslora_cli.training.step import TrainStep

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INITIAL, FINAL = 12, 8
"""AdaLoRA's ranks; B-LoRA begins with the first, LoRA has the second."""
ALPHA = 16.0
EXAMPLES = 50_000  # IVON's effective sample size
T_INIT = 1  # the first step without an allocation

Step = Callable[[int, Tensor], None]
"""Step t on the rows (b,) of the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a row is built for."""

    model: str
    size: Size
    split: TokenisedSplit
    device: torch.device
    total: int
    """Steps of the pretended run; pruning lasts to two thirds of it."""
    precision: str


# ---- this engine


def engine(
    method: str, optimizer: str, criterion: str | None, *, captured: bool = True,
    compiled: bool = True, precision: str | None = None, **options: Any,
) -> Callable[[Setting], Step]:  # fmt: skip
    """The engine's step, built as a run builds it; on a GPU in graphs, its blocks compiled.

    `options`: further ones of the run.
    """

    def build(s: Setting) -> Step:
        config = RunConfig(
            model=s.model, method=method, optimizer=optimizer, criterion=criterion,
            init_rank=INITIAL if method in ("adalora", "blora") else FINAL, target_rank=FINAL,
            alpha=ALPHA, target_modules=tuple(TARGETS), precision=precision or s.precision,
            lr=0.03 if optimizer == "ivon" else 2e-4, warmup_steps=1,
            weight_decay=1e-8 if optimizer == "ivon" else 0.0, max_length=s.size.tokens,
            t_init=T_INIT, t_final=s.total // 3, delta_t=1, max_steps=s.total,
            schedule_steps=s.total, **options,
        )  # fmt: skip
        network = build_network(
            config, build_objective("causal", ()), SimpleNamespace(pad_token_id=0),
            posterior=OPTIMIZERS[optimizer].posterior, device=s.device,
        )  # fmt: skip
        assert network.packed
        noise = torch.Generator(s.device).manual_seed(0)
        maker, on_gpu = find_method(method), s.device.type == "cuda"
        step = TrainStep(
            network,
            build_optimizer(config, network.bank, EXAMPLES, noise),
            maker.allocator(config, network, noise),
            learning_rate=learning_rate(config),
            orth_reg=maker.orthogonality(config),
            samples=1,
            runner=GraphRunner([noise]) if captured and on_gpu else run_eagerly,
        )
        network.module.train()
        if compiled and captured and on_gpu:
            compile_blocks(network.module, dynamic=None)
            step.compile()
        feed = Feed(s.split, s.device)

        def run(t: int, rows: Tensor) -> None:
            step(t, [feed.batch(rows)])

        run.engine = step  # type: ignore[attr-defined]
        return run

    return build


# ---- peers


def peer(
    *, adaptive: bool, liger: bool = False, compiled: bool = False, bits: int | None = None,
    checkpointing: bool = False,
) -> Callable[[Setting], Step]:  # fmt: skip
    """PEFT's AdaLoRA or LoRA + torch's AdamW, the backbone in bf16 on a GPU, under autocast.

    Args:
        bits: of the backbone's weights, by bitsandbytes: 4 (nf4, double quantization) or 8.
        checkpointing: recompute the blocks in the backward pass.
    """

    def build(s: Setting) -> Step:
        low, on_gpu = s.precision == "bf16", s.device.type == "cuda"
        base = AutoModelForCausalLM.from_pretrained(
            s.model, dtype=torch.bfloat16 if low else torch.float32,
            device_map={"": s.device}, **({} if bits is None else {
                "quantization_config": BitsAndBytesConfig(
                    load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
                ),
            }),
        )  # fmt: skip
        base.config.use_cache = False
        modeling = importlib.import_module(type(base).__module__)
        ours = dict(vars(modeling))
        if liger:
            patch = importlib.import_module("liger_kernel.transformers")
            getattr(patch, f"apply_liger_kernel_to_{s.size.kind}")(model=base)
        theirs = {
            name: value for name, value in vars(modeling).items() if ours.get(name) is not value
        }
        common: Any = {
            "task_type": TaskType.CAUSAL_LM, "lora_alpha": ALPHA, "target_modules": TARGETS,
        }  # fmt: skip
        made: Any = (
            AdaLoraConfig(
                init_r=INITIAL, target_r=FINAL, tinit=T_INIT, tfinal=s.total // 3, deltaT=1,
                total_step=s.total, orth_reg_weight=0.1, **common,
            )
            if adaptive
            else LoraConfig(r=FINAL, **common)
        )  # fmt: skip
        peft: Any = get_peft_model(base, made).train()
        if checkpointing:
            peft.enable_input_require_grads()
            base.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in peft.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=on_gpu)
        call = torch.compile(peft) if compiled else peft
        tokens = s.split.tokens.long().to(s.device)

        def step(t: int, rows: Tensor) -> None:
            starts, width = s.split.offsets[rows], int(s.split.lengths[rows].max())
            places = starts[:, None] + torch.arange(width)
            inside = torch.arange(width) < s.split.lengths[rows][:, None]
            ids = tokens[torch.where(inside, places, 0).to(s.device)]
            batch: dict[str, Any] = {"input_ids": ids, "labels": ids}
            if not bool(inside.all()):
                seen = inside.to(s.device)
                batch |= {"attention_mask": seen.long(), "labels": ids.where(seen, -100)}
            with torch.autocast(s.device.type, torch.bfloat16, enabled=low):
                loss = call(**batch).loss
            loss.backward()
            optimizer.step()
            if adaptive:
                peft.base_model.update_and_allocate(t)
            optimizer.zero_grad()

        def patched(t: int, rows: Tensor) -> None:
            with replaced(modeling, theirs):
                step(t, rows)

        vars(modeling).update({name: ours[name] for name in theirs if name in ours})
        return patched

    return build


@contextmanager
def replaced(module: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set names of a module inside the block: liger replaces functions of transformers' files."""
    before = {name: vars(module)[name] for name in values if name in vars(module)}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


OURS, ADAMW, LORA = "adalora-ivon", "adalora-adamw", "lora-adamw"
ROWS: dict[str, tuple[str, Callable[[Setting], Step]]] = {
    OURS: ("bayeslora AdaLoRA + IVON, snr", engine("adalora", "ivon", "snr")),
    LORA: ("bayeslora LoRA + AdamW", engine("lora", "adamw", None)),
    "adalora-ivon-graphs": (
        "bayeslora AdaLoRA + IVON, snr, not compiled",
        engine("adalora", "ivon", "snr", compiled=False),
    ),
    "adalora-ivon-eager": (
        "the same, kernel by kernel",
        engine("adalora", "ivon", "snr", captured=False, compiled=False),
    ),
    "adalora-ivon-checkpointing": (
        "bayeslora AdaLoRA + IVON, snr, --gradient-checkpointing",
        engine("adalora", "ivon", "snr", gradient_checkpointing=True),
    ),
    "adalora-ivon-selective": (
        "bayeslora AdaLoRA + IVON, snr, --gradient-checkpointing selective",
        engine("adalora", "ivon", "snr", gradient_checkpointing="selective"),
    ),
    "adalora-ivon-selective-graphs": (
        "the same, not compiled",
        engine("adalora", "ivon", "snr", compiled=False, gradient_checkpointing="selective"),
    ),
    **{
        f"adalora-ivon-{base}{ending}": (
            f"bayeslora AdaLoRA + IVON, snr, --base-precision {base}{said}",
            engine("adalora", "ivon", "snr", base_precision=base, **options),
        )
        for base in BASE_PRECISIONS
        for ending, said, options in (
            ("", "", {}),
            ("-graphs", ", not compiled", {"compiled": False}),
            ("-checkpointing", ", --gradient-checkpointing", {"gradient_checkpointing": True}),
            (
                "-selective",
                ", --gradient-checkpointing selective",
                {"gradient_checkpointing": "selective"},
            ),
            (
                "-checkpointing-graphs",
                ", --gradient-checkpointing, not compiled",
                {"gradient_checkpointing": True, "compiled": False},
            ),
            (
                "-selective-graphs",
                ", --gradient-checkpointing selective, not compiled",
                {"gradient_checkpointing": "selective", "compiled": False},
            ),
        )
    },
    "adalora-ivon-in-bf16": (
        "bayeslora AdaLoRA + IVON, snr, --precision bf16",
        engine("adalora", "ivon", "snr", precision="bf16"),
    ),
    ADAMW: (
        "bayeslora AdaLoRA + AdamW, sensitivity",
        engine("adalora", "adamw", "sensitivity"),
    ),
    "blora-adamw": ("bayeslora B-LoRA + AdamW", engine("blora", "adamw", None)),
    "blora-ivon": ("bayeslora B-LoRA + IVON", engine("blora", "ivon", None)),
    "blora-adamw-quant": (
        "bayeslora B-LoRA + AdamW, --blora-mode quant",
        engine("blora", "adamw", None, blora_mode="quant"),
    ),
    "blora-adamw-rank": (
        "bayeslora B-LoRA + AdamW, --blora-mode rank",
        engine("blora", "adamw", None, blora_mode="rank"),
    ),
    "blora-adamw-base": (
        "bayeslora B-LoRA + AdamW, --quantize-base",
        engine("blora", "adamw", None, quantize_base=True),
    ),
    "peft-adalora": ("PEFT AdaLoRA + AdamW", peer(adaptive=True)),
    "peft-adalora-liger": ("PEFT AdaLoRA + AdamW, liger", peer(adaptive=True, liger=True)),
    "peft-lora": ("PEFT LoRA + AdamW", peer(adaptive=False)),
    "peft-lora-liger": ("PEFT LoRA + AdamW, liger", peer(adaptive=False, liger=True)),
    "peft-qlora": ("PEFT LoRA + AdamW on nf4", peer(adaptive=False, bits=4)),
    "peft-qlora-liger": (
        "PEFT LoRA + AdamW on nf4, liger",
        peer(adaptive=False, bits=4, liger=True),
    ),
    "peft-qlora-liger-checkpointing": (
        "PEFT LoRA + AdamW on nf4, liger, gradient checkpointing",
        peer(adaptive=False, bits=4, liger=True, checkpointing=True),
    ),
    "peft-lora-int8": ("PEFT LoRA + AdamW on int8", peer(adaptive=False, bits=8)),
    "peft-lora-liger-compile": (
        "PEFT LoRA + AdamW, liger, torch.compile",
        peer(adaptive=False, liger=True, compiled=True),
    ),
}
OF_THIS_ENGINE = frozenset(key for key in ROWS if not key.startswith("peft"))
