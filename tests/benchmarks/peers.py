"""The training steps that users have today, built from the widely used parts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import ivon
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

Step = Callable[[int, dict[str, Tensor]], None]


def peft_adalora(
    model: str, targets: list[str], total: int, t_init: int, device: str, delta_t: int = 1
) -> torch.nn.Module:
    """PEFT's AdaLoRA at the paper's ranks, pruning from step `t_init` on every `delta_t` steps."""
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    config = AdaLoraConfig(
        task_type=TaskType.SEQ_CLS, init_r=3, target_r=2, lora_alpha=32, target_modules=targets,
        tinit=t_init, tfinal=total // 3, deltaT=delta_t, total_step=total, orth_reg_weight=0.1,
    )  # fmt: skip
    return get_peft_model(base, config).to(device).train()


def peft_adalora_adamw(
    model: str, targets: list[str], total: int, t_init: int, device: str, delta_t: int = 1
) -> Step:
    """PEFT AdaLoRA + torch's AdamW + update_and_allocate: what people use."""
    peft = peft_adalora(model, targets, total, t_init, device, delta_t)
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


def peft_adalora_ivon_snr(
    model: str, targets: list[str], total: int, t_init: int, device: str, delta_t: int = 1
) -> Step:
    """PEFT AdaLoRA + `ivon-opt`, allocated by |mean| / sigma, computed only at steps that allocate:
    the paper's method in PEFT's world."""
    peft = peft_adalora(model, targets, total, t_init, device, delta_t)
    trained = [p for p in peft.parameters() if p.requires_grad]
    ess, decay = 2490, 1e-8
    optimizer = ivon.IVON(
        trained, lr=0.5, ess=ess, weight_decay=decay, clip_radius=1e-3, beta2=0.99999
    )
    starts = dict(zip(map(id, trained), [0, *accumulate(p.numel() for p in trained)], strict=False))
    named = dict(peft.base_model.model.named_parameters())

    def score(name: str) -> Tensor:
        parameter, group = named[name], optimizer.param_groups[0]
        start = starts[id(parameter)]
        hessian = group["hess"][start : start + parameter.numel()].view_as(parameter)
        return parameter.detach().abs() * (ess * (hessian + decay)).sqrt()

    allocator = peft.base_model.rankallocator
    allocator._element_score, allocator.update_ipt = score, lambda _: None

    def step(t: int, batch: dict[str, Tensor]) -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            peft(**batch).loss.backward()
        optimizer.step()
        peft.base_model.update_and_allocate(t)

    return step
