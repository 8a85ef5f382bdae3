"""Which runs and which blocks are compiled; what the compiled step computes is in test_step.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.execution import compilation
from bayeslora_cli.execution.compilation import (
    WORTH_IT,
    WORTH_IT_PACKED,
    WORTH_IT_PACKED_ENCODER,
    compile_blocks,
    compiled_once,
    is_worth_compiling,
)
from bayeslora_cli.methods.adalora.method import ADALORA
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.runs import file_lock
from tests.training.test_step import T_FINAL, T_INIT, TOTAL, batches, make_step


@pytest.mark.parametrize(
    ("choice", "steps", "triton", "expected"),
    [
        ("on", 1, True, True), ("on", 1, False, False), ("off", 10 * WORTH_IT, True, False),
        ("auto", WORTH_IT - 1, True, False), ("auto", WORTH_IT, True, True),
        ("auto", WORTH_IT, False, False),
    ],
)  # fmt: skip
def test_long_runs_are_compiled_where_there_is_a_compiler(
    choice, steps, triton, expected, monkeypatch, caplog
):
    monkeypatch.setattr(compilation, "find_spec", lambda name: triton or None)
    assert is_worth_compiling(choice, steps) == expected
    assert ("not compiled, and slower" in caplog.text) == (not triton)


def test_packed_rows_are_compiled_sooner(monkeypatch):
    monkeypatch.setattr(compilation, "find_spec", lambda name: True)
    found = [is_worth_compiling("auto", WORTH_IT_PACKED - less, packed=True) for less in (0, 1)]
    assert found == [True, False]
    assert not is_worth_compiling("off", WORTH_IT, packed=True)


def test_packed_encoders_need_more_steps(monkeypatch):
    monkeypatch.setattr("bayeslora_cli.execution.compilation.find_spec", lambda name: True)
    steps = (WORTH_IT_PACKED_ENCODER, WORTH_IT_PACKED_ENCODER - 1)
    found = [is_worth_compiling("auto", n, packed=True, head=True) for n in steps]
    assert found == [True, False]


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a")
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_gated_blocks_are_whole_graphs_and_few(kind, backbone, monkeypatch):
    """One for the float phase and one for both others, which the first block shares. None of them
    breaks, and no step makes another."""
    from torch._dynamo.utils import counters

    original = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **kwargs: original(self, **kwargs, backend="eager")
    )
    step = make_step(backbone(kind), "adamw", None, method="blora")
    step.network.operands.mixture_of_widths = True  # as on a GPU
    blocks = len(step.network.module.base_model.encoder.layer)
    assert blocks > 1
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(step.network.module)
    data = batches()
    for t in (0, 1, T_INIT, T_INIT + 1, T_INIT + 2, TOTAL - T_FINAL, TOTAL - 1):
        step(t, [data[t % len(data)]])
    torch._dynamo.reset()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert step.bad_step() is None


class Waits(Exception):
    """A process would wait here."""


@pytest.fixture
def waits(monkeypatch, tmp_path):
    """Whether a process that is to compile something waits for those that do; else it has."""
    waited = []

    def find(config, key, **changes):
        waited.clear()
        try:
            changed = replace(config, **changes)
            block = find_method(changed.method).block_key(changed)
            with compiled_once(changed, block, key):
                if waited:
                    raise Waits
        except Waits:
            return True
        return False

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(file_lock, "_wait", lambda *arguments: waited.append(arguments))
    return find


def test_the_same_is_compiled_by_one_at_a_time(waits):
    """First what all runs of a method have in common, on inputs of the same shapes."""
    config = RunConfig(task="rte", model="m")
    shapes = (("input_ids", torch.Size([8, 16]), torch.int64),)
    wider = (("input_ids", torch.Size([8, 24]), torch.int64),)
    key, block = ("a pass", shapes), ADALORA.block_key(config)
    with compiled_once(config, block, key):
        assert waits(config, key, seed=5)
        assert waits(config, ("another pass", shapes))
        assert waits(config, key, criterion="magnitude")
        assert not waits(config, ("a pass", wider))
        assert not waits(config, key, model="n")
        assert not waits(config, key, init_rank=4)
        assert not waits(config, ("an update", ()))
    with compiled_once(config, block, ("another pass", shapes)):
        assert waits(config, ("another pass", shapes), seed=5)
        assert not waits(config, key, seed=5), "that is there"
        assert not waits(config, ("another pass", shapes), criterion="magnitude")
    with compiled_once(config, block, key):
        assert not waits(config, key, seed=5), "there is nothing left to be first at"
    with compiled_once(config, block, ("an update of others", ())):
        assert waits(config, ("an update of others", ()), seed=5)
        assert not waits(config, ("an update of others", ()), criterion="magnitude")


def test_what_could_not_be_compiled_is_not_taken_for_compiled(waits, tmp_path):
    with pytest.raises(RuntimeError), compiled_once(RunConfig(task="rte"), (), ("a pass", ())):
        raise RuntimeError
    assert not list((tmp_path / "bayeslora").iterdir())


def test_the_processes_that_compile_are_waited_for(monkeypatch):
    """Only if they were started, and not for ever."""
    name = "torch._inductor.async_compile"
    monkeypatch.delitem(sys.modules, name, raising=False)
    compilation.await_compilers()
    waited = []

    class Future:
        def result(self, timeout):
            waited.append(timeout)
            raise TimeoutError

    found = SimpleNamespace(AsyncCompile=SimpleNamespace(_ready_future=None))
    monkeypatch.setitem(sys.modules, name, found)
    compilation.await_compilers()
    assert not waited
    found.AsyncCompile._ready_future = Future()
    compilation.await_compilers()
    assert waited == [compilation.READY]
