"""The training steps that users have today, built from the widely used parts."""

from __future__ import annotations

from collections.abc import Callable

import ivon
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

Step = Callable[[int, dict[str, Tensor]], None]


def peft_adalora(
    model: str, targets: list[str], total: int, t_init: int, device: str
) -> torch.nn.Module:
    """PEFT's AdaLoRA at the paper's ranks, pruning from step `t_init` on at every step."""
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    config = AdaLoraConfig(
        task_type=TaskType.SEQ_CLS, init_r=3, target_r=2, lora_alpha=32, target_modules=targets,
        tinit=t_init, tfinal=total // 3, deltaT=1, total_step=total, orth_reg_weight=0.1,
    )  # fmt: skip
    return get_peft_model(base, config).to(device).train()


def peft_adalora_adamw(
    model: str, targets: list[str], total: int, t_init: int, device: str
) -> Step:
    """PEFT AdaLoRA + torch's AdamW + update_and_allocate: what people use."""
    peft = peft_adalora(model, targets, total, t_init, device)
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-3)

    def step(t: int, batch: dict[str, Tensor]) -> None:
        peft(**batch).loss.backward()
        optimizer.step()
        peft.base_model.update_and_allocate(t)
        optimizer.zero_grad()

    return step


def peft_adalora_ivon(model: str, targets: list[str], total: int, t_init: int, device: str) -> Step:
    """PEFT AdaLoRA + `ivon-opt`, allocated by PEFT's sensitivity."""
    peft = peft_adalora(model, targets, total, t_init, device)
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = ivon.IVON(
        trained, lr=0.5, ess=2490, weight_decay=1e-8, clip_radius=1e-3, beta2=0.99999
    )

    def step(t: int, batch: dict[str, Tensor]) -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            peft(**batch).loss.backward()
        optimizer.step()
        peft.base_model.update_and_allocate(t)

    return step
