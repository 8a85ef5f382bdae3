"""The checksum of pretrained weights."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.models.backbones.fingerprint import SAMPLES, fingerprint


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 5), (SAMPLES * 2 + 7,), (40, 90), ())
    return [torch.randn(shape, generator=generator) for shape in shapes]


@given(st.permutations(range(4)))
def test_the_order_does_not_count(order):
    tensors = weights()
    assert fingerprint(tensors) == fingerprint([tensors[i] for i in order])


def test_values_shapes_and_number_count():
    tensors = weights()
    others = [
        weights(1),
        tensors[:-1],
        [*tensors, tensors[0]],
        [tensors[0].reshape(5, 3), *tensors[1:]],
        [t * 1.001 for t in tensors],
    ]
    assert len({fingerprint(t) for t in [tensors, *others]}) == 1 + len(others)


def test_memory_layout_does_not_count():
    tensors = weights()
    turned = [t.t().contiguous().t() if t.dim() == 2 else t for t in tensors]
    assert fingerprint(turned) == fingerprint(tensors)


def test_one_value_of_a_small_tensor_counts():
    """Tensors of up to `SAMPLES` values are hashed whole."""
    tensors = [torch.zeros(SAMPLES)]
    before = fingerprint(tensors)
    for place in (0, 1, SAMPLES - 1):
        tensors[0].zero_()[place] = 1e-30
        assert fingerprint(tensors) != before
