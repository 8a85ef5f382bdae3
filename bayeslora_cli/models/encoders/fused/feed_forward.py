"""Has an encoder's blocks compute their feed-forward layers as one operator, on a GPU.

A block calls `intermediate`, gelu(W x), and then `output`, whose `dense` is V. Modules, names and
parameters stay: `intermediate` passes its input on, and `dense` computes both layers of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.kernels.low_rank.feed_forward import Adapted, feed_forward


def join_feed_forward(module: nn.Module) -> int:
    """Join the two layers of each feed-forward layer whose weights are on a GPU; count them.

    On a CPU nothing changes. Call it on the device where the module stays.
    """
    found = 0
    for owner in list(module.modules()):
        first, second = (getattr(owner, name, None) for name in ("intermediate", "output"))
        if not isinstance(first, nn.Module) or not isinstance(second, nn.Module):
            continue
        if _can_be_joined(first, second) and _is_on_a_gpu(first):
            pair = Pair(first, second)
            owner.intermediate = PassedOn(first, pair)
            second.dense.preceding = pair  # type: ignore[union-attr]
            found += 1
    return found


class Pair:
    """The two layers, which it looks up in their modules: others may take their place."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        """`first` and `second`: a block's `intermediate` and `output`."""
        self._owners = first, second

    def passes(self) -> bool:
        """Return whether both layers are still the adapted ones."""
        both = (owner._modules["dense"] for owner in self._owners)
        return all(type(layer) is LowRankLinear and layer.down is not None for layer in both)

    def both(self, x: Tensor) -> Tensor:
        """Compute V gelu(W x): (..., in) -> (..., out)."""
        first, second = (_operands(owner._modules["dense"]) for owner in self._owners)
        return feed_forward(x.flatten(0, -2), first, second).view(*x.shape[:-1], -1)


class PassedOn(nn.Module):
    """Takes the place of `intermediate`, whose children it has under their names.

    Where others take the place of one of the two adapted layers, such as PEFT's, both modules
    compute what they did.
    """

    def __init__(self, replaced: nn.Module, pair: Pair) -> None:
        """`pair`: of the replaced module's layer and the one that follows it."""
        super().__init__()
        self._modules = replaced._modules  # both see the same children, whatever they become
        # in a tuple, which hides it from torch: it is no child of this module
        self._replaced, self._pair = (replaced,), pair
        self.training = replaced.training

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or gelu(W x): (..., in) -> (..., in or f)."""
        if self._pair.passes():
            return x
        found: Tensor = self._replaced[0](x)
        return found


def _can_be_joined(first: nn.Module, second: nn.Module) -> bool:
    """Return whether the two are an adapted layer with gelu and one that follows it."""
    layers = getattr(first, "dense", None), getattr(second, "dense", None)
    if any(type(layer) is not LowRankLinear or layer.shared is not None for layer in layers):
        return False
    wide, narrow = (layer for layer in layers if isinstance(layer, LowRankLinear))
    if any(type(layer.base_layer) is not DenseLinear for layer in (wide, narrow)):
        return False
    act = getattr(first, "intermediate_act_fn", None)
    if not callable(act) or wide.out_features != narrow.in_features:
        return False
    # what `intermediate` is besides: other children would not be called
    if len(list(first.children())) > 1 + isinstance(act, nn.Module):
        return False
    x = torch.linspace(-6, 6, 97, device="cpu")
    found = act(x)
    return isinstance(found, Tensor) and torch.allclose(found, F.gelu(x), rtol=0, atol=1e-6)


def _is_on_a_gpu(module: nn.Module) -> bool:
    return next(module.parameters()).is_cuda


def _operands(layer: nn.Module | None) -> Adapted:
    assert isinstance(layer, LowRankLinear)
    form = layer.base_layer
    assert isinstance(form, DenseLinear)
    assert layer.down is not None
    assert layer.up is not None
    return Adapted(*form.weight_and_bias(), layer.down, layer.up)
