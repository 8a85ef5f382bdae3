"""The adapter that a run writes, opened by plain PEFT on the backbone in memory and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.export.formats.peft_adapter import PeftAdapter
from bayeslora_cli.export.independent_reader import adapted
from bayeslora_cli.methods.network import Network, PassOperands
from bayeslora_cli.tasks.objectives.objective import BESIDE_INPUTS

ROWS, TOKENS = 2, 32
"""Most rows that are compared, and most tokens of each: a wrong adapter shows in any text."""
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference of a logit, relative to the largest logit if above 1, by the run's precision:
a wrong adapter differs by more."""


def adapter_problem(
    network: Network, at: Posterior, directory: Path, batch: Mapping[str, Tensor]
) -> str | None:
    """Say what is wrong with an adapter; None: PEFT computes with it what the run computes.

    Of a method whose layers quantize their operands, those that an adapter has no place for, such
    as the inputs, are not quantized in the comparison.

    Args:
        at: the posterior that the adapter was written from.
        directory: the adapter's.
        batch: inputs of the network, of which `ROWS` rows are compared.
    """
    few = _beginnings(batch)
    bank, was_training = network.bank, network.module.training
    device = bank.theta.device
    theta = at.mean.to(device).clone()
    if bank.has_singular_values:
        bank.singular_values(theta).mul_(at.mask.to(device))
    network.module.eval()
    try:
        with torch.inference_mode(), _quantizing(network.operands), bank.showing(theta):
            expected = network.logits(few).cpu()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model = adapted(_plain(network), directory).to(device).eval()
            with torch.inference_mode():
                found = network.objective.forward(model, few).float().cpu()
    except Exception as error:  # whatever fails in this check, the run itself is not lost
        return f"PEFT {version('peft')} does not open it on this backbone: {error}"
    finally:
        network.module.train(was_training)
    if not expected.numel():  # tokens are predicted, and none of these rows has one that counts
        return None
    difference = float((found - expected).abs().max())
    allowed = BOUNDS[network.compute_dtype] * max(1.0, float(expected.abs().max()))
    if difference <= allowed:
        return None
    return (
        f"PEFT {version('peft')} opens it on this backbone with other predictions: logits differ "
        f"from the run's by {difference:.1e}"
    )


def _beginnings(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first tokens of the first rows, or all of them if tokens are predicted."""
    inputs = {name: value for name, value in batch.items() if name not in BESIDE_INPUTS}
    rows, *_, width = inputs["input_ids"].shape
    # places of predicted tokens, of which there may be as many as rows
    if any(v.ndim < 2 or (len(v), v.shape[-1]) != (rows, width) for v in inputs.values()):
        return inputs
    return {name: value[:ROWS, ..., :TOKENS] for name, value in inputs.items()}


@contextmanager
def _quantizing(operands: PassOperands | None) -> Iterator[None]:
    """Inside, only those operands are quantized that a PEFT adapter keeps."""
    if operands is None:
        yield
        return
    before = operands.quantized
    operands.quantized = before & PeftAdapter.keeps
    try:
        yield
    finally:
        operands.quantized = before


def _plain(network: Network) -> Any:
    """The backbone without adapters: modules of its own, the network's tensors."""
    module = network.module
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.data, requires_grad=False) for p in module.parameters()
    }
    memo |= {id(buffer): buffer for buffer in module.buffers()}
    for layer in network.adapters.values():
        plain = copy(layer.base_layer.layer())
        plain._parameters = {
            name: None if p is None else memo.get(id(p), p) for name, p in plain._parameters.items()
        }
        memo[id(layer)] = plain
    memo |= {id(joint): None for joint in network.joints}  # joint products need our layers
    return deepcopy(module, memo)
