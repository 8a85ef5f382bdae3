"""Makes the adapted blocks of decoders faster: joint projections, the gated MLP by own operators.

Modules, names and parameters stay; only how the products are computed changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora_cli.models.adapters.layer import JointLinear, LowRankLinear, SharedCall, join
from bayeslora_cli.models.kernels.decoder.gated_mlp import Adapted, gated_mlp

ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj")
JOINED = "gate_up_proj"
"""The same two as one layer, as Phi-3 has them."""
NARROW = "down_proj"


class GatedMlp(nn.Module):
    """A gated MLP, V (silu(g) * u) with [g; u] = W x, by the operators of `kernels.decoder`.

    It has the children of the module that it replaces, under their names. Where others take the
    place of its adapted layers, such as PEFT's, the replaced module computes it.
    """

    def __init__(self, replaced: nn.Module, wide: JointLinear | LowRankLinear) -> None:
        """`wide`: gate and up projection in one product; what it and `down_proj` store is
        `frozen`."""
        super().__init__()
        self._modules = replaced._modules  # both see the same children, whatever they become
        self._adapted = (*(GATED if isinstance(wide, JointLinear) else (JOINED,)), NARROW)
        # in a tuple, which hides it from torch: it is not one more child
        self._wide, self._replaced = (wide,), (replaced,)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the MLP: (..., in) -> (..., out)."""
        if any(type(self._modules[name]) is not LowRankLinear for name in self._adapted):
            found: Tensor = self._replaced[0](x)
            return found
        wide, narrow = self._wide[0], self._modules[NARROW]
        separate = wide.layers[0].rank if isinstance(wide, JointLinear) else 0
        out = gated_mlp(x.flatten(0, -2), _operands(wide), _operands(narrow), separate)
        return out.view(*x.shape[:-1], -1)


def join_blocks(module: nn.Module) -> list[JointLinear]:
    """Join query, key and value, gate and up projection, wherever at least two are adapted.

    Replaces each MLP that a `GatedMlp` can compute. Call it on the device where the module stays.
    """
    joints = []
    for owner in module.modules():
        for names in (ATTENTION, GATED):
            joint = _joint(owner, names)
            if joint is not None:
                # attention keeps the values as they are, but turns queries and keys
                values = joint.layers[-1] is getattr(owner, ATTENTION[-1], None)
                SharedCall(joint, copied=len(joint.layers) - 1 if values else None)
                joints.append(joint)
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            wide = _wide(child)
            if wide is not None and is_gated_silu(child):
                setattr(owner, name, GatedMlp(child, wide))
    return joints


def inside_mlps(module: nn.Module) -> set[int]:
    """Return the ids of the adapted layers that a `GatedMlp` computes."""
    mlps = [found for found in module.modules() if isinstance(found, GatedMlp)]
    return {id(layer) for mlp in mlps for layer in mlp.children()}


def is_gated_silu(module: nn.Module) -> bool:
    """Return whether a module computes what a `GatedMlp` does; it is tried on small numbers."""
    names = [JOINED] if hasattr(module, JOINED) else list(GATED)
    draws = torch.Generator("cpu").manual_seed(0)
    x, wide, narrow = (torch.randn(*s, generator=draws) for s in ((2, 3), (10, 3), (3, 5)))
    weights = dict(zip((*names, NARROW), (*wide.chunk(len(names)), narrow), strict=True))
    others = {name: child for name, child in module.named_children() if name not in weights}
    if any(list(child.parameters()) or isinstance(child, nn.Dropout) for child in others.values()):
        return False
    trial = copy(module)
    trial._modules = {**others, **{name: _linear(weight) for name, weight in weights.items()}}
    with torch.no_grad():
        try:
            found = trial(x[None])
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    gate, up = F.linear(x, wide).chunk(2, -1)
    return torch.allclose(found, F.linear(F.silu(gate) * up, narrow)[None], atol=1e-5)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _joint(owner: nn.Module, names: Sequence[str]) -> JointLinear | None:
    """Join those of the named children that are low-rank layers, if there are several."""
    layers = [getattr(owner, name, None) for name in names]
    found = [layer for layer in layers if isinstance(layer, LowRankLinear)]
    if len(found) < 2 or len({layer.in_features for layer in found}) > 1:
        return None
    return join(found)


def _wide(owner: nn.Module) -> JointLinear | LowRankLinear | None:
    """Return gate and up projection as one; None: not all three layers are such as it takes."""
    layers = [getattr(owner, name, None) for name in (*GATED, JOINED, NARROW)]
    gate, up, both, narrow = (x if type(x) is LowRankLinear else None for x in layers)
    wide: JointLinear | LowRankLinear | None = both
    if gate is not None and up is not None and gate.shared is not None:
        wide = gate.shared.joint if gate.shared is up.shared else None
    if wide is None or narrow is None:
        return None
    operands = (layer.base_layer.frozen() is not None for layer in (wide, narrow))
    return wide if all(operands) else None


def _operands(layer: JointLinear | nn.Module | None) -> Adapted:
    assert isinstance(layer, JointLinear | LowRankLinear)
    frozen = layer.base_layer.frozen()
    assert frozen is not None
    assert layer.down is not None
    assert layer.up is not None
    return Adapted(frozen, layer.down, layer.up)
