"""What a run sets in torch before it computes."""

from __future__ import annotations

import torch

from bayeslora_cli.execution.device import set_precision


def test_a_deterministic_run_fills_no_new_memory():
    """Each tensor of a step would be written once more, by a kernel of its own."""
    try:
        set_precision("fp32", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        set_precision("fp32")
    assert not torch.are_deterministic_algorithms_enabled()
