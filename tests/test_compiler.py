"""Which runs and which blocks are compiled; what the compiled step computes is in test_step.py."""

from __future__ import annotations

import pytest
from torch import nn

from bayeslora_cli import compiler
from bayeslora_cli.compiler import WORTH_IT, compile_blocks, is_worth_compiling


@pytest.mark.parametrize(
    ("choice", "steps", "triton", "expected"),
    [
        ("on", 1, False, True), ("off", 10 * WORTH_IT, True, False),
        ("auto", WORTH_IT - 1, True, False), ("auto", WORTH_IT, True, True),
        ("auto", WORTH_IT, False, False),
    ],
)  # fmt: skip
def test_long_runs_are_compiled_where_there_is_a_compiler(
    choice, steps, triton, expected, monkeypatch
):
    monkeypatch.setattr(compiler, "find_spec", lambda name: triton or None)
    assert is_worth_compiling(choice, steps) == expected


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # in torch's own imports
def test_blocks_of_like_layers_alone_and_names_stay():
    module = nn.ModuleDict(
        {
            "like": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)),
            "unlike": nn.ModuleList([nn.Linear(2, 2), nn.Tanh()]),
            "alone": nn.Linear(2, 2),
        }
    )
    before = list(module.state_dict())
    compile_blocks(module)
    compiled = [name for name, m in module.named_modules() if m._compiled_call_impl is not None]
    assert compiled == ["like.0", "like.1", "like.2"]
    assert list(module.state_dict()) == before
