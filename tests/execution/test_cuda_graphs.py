"""When pieces of a step run, are captured and replayed; for results see gpu/test_step.py."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.execution.cuda_graphs import GraphRunner, run_eagerly
from bayeslora_cli.execution.device import memory_explained


class Graph:
    """A graph of one piece on a CPU: `recording` keeps it, `replay` runs it on its places."""

    def __init__(self):
        self.piece = None

    def replay(self):
        self.piece()


@pytest.fixture
def runner(monkeypatch):
    """A runner whose captures note what they are given instead of running it, as CUDA's do."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    found = GraphRunner([])
    found.recorded = None

    @contextmanager
    def recording(graph):
        found.recorded = graph
        try:
            yield
        finally:
            found.recorded = None

    monkeypatch.setattr(found, "_graph", Graph)
    monkeypatch.setattr(found, "_recording", recording)
    monkeypatch.setattr(found, "_settle", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return found


def piece_of(runner, log, *, fails=False):
    def piece(inputs):
        if runner.recorded is None:
            log.append(("eager", inputs["x"].tolist()))
        elif fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        else:
            runner.recorded.piece = lambda: log.append(("graph", inputs["x"].tolist()))

    return piece


def test_the_second_time_is_captured_and_replayed_on_new_inputs(runner):
    log = []
    piece = piece_of(runner, log)
    for value in (1.0, 2.0, 3.0):
        runner("key", piece, {"x": torch.tensor([value])})
    assert log == [("eager", [1.0]), ("graph", [2.0]), ("graph", [3.0])]


def test_shapes_types_and_keys_are_told_apart(runner):
    log = []
    piece = piece_of(runner, log)
    others = [torch.zeros(2), torch.zeros(1), torch.zeros(2, dtype=torch.int64)]
    for x in others:
        runner("key", piece, {"x": x})
    runner("other", piece, {"x": torch.zeros(2)})
    assert [how for how, _ in log] == ["eager"] * 4
    runner("key", piece, {"x": torch.ones(2)})
    assert log[-1] == ("graph", [1.0, 1.0])


def test_what_surrounds_the_first_time_of_each_key(runner):
    log, entered = [], []

    @contextmanager
    def around(key):
        entered.append(key)
        yield
        log.append("after")

    runner.around_first = around
    piece, x = piece_of(runner, log), torch.zeros(1)
    for key in ("key", "key", "other", "key"):
        runner(key, piece, {"x": x})
    assert [how if how == "after" else how[0] for how in log] == [
        "eager", "after", "graph", "eager", "after", "graph",
    ]  # fmt: skip
    shapes = (("x", torch.Size([1]), torch.float32),)
    assert entered == [("key", shapes), ("other", shapes)]


def test_a_graph_keeps_inputs_of_its_own(runner):
    """What the caller does with a batch afterwards is nothing to the graph."""
    log = []
    piece, x = piece_of(runner, log), torch.tensor([1.0])
    runner("key", piece, {"x": x})
    runner("key", piece, {"x": x})
    x.fill_(9.0)
    next(iter(runner._graphs.values()))[0].replay()
    assert log[-1] == ("graph", [1.0])


def test_what_cannot_be_captured_is_said_once_and_runs(runner, caplog):
    log = []
    piece = piece_of(runner, log, fails=True)
    for value in (1.0, 2.0, 3.0, 4.0):
        runner("key", piece, {"x": torch.tensor([value])})
    assert log == [("eager", [value]) for value in (1.0, 2.0, 3.0, 4.0)]
    (record,) = caplog.records
    assert record.message.endswith("slower: operation not permitted when stream is capturing")


@pytest.mark.parametrize("hidden", [False, True])
def test_too_little_memory_for_graphs(runner, caplog, hidden):
    """What they held is the eager steps'; several processes stop, and it is explained to them."""
    log = []

    def too_large(inputs):
        log.append(runner.recorded)
        if runner.recorded is not None:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                if hidden:  # what the end of a capture says to it
                    raise RuntimeError("operation failed due to a previous error during capture")

    piece = piece_of(runner, [])
    for _ in range(2):
        runner("small", piece, {"x": torch.zeros(1)})
    assert runner._graphs
    for _ in range(3):
        runner("large", too_large, {})
    assert len(log) == 4
    assert not runner._graphs
    assert len(caplog.records) == 1
    runner.may_run_eagerly, runner.failure = False, None
    with pytest.raises(BayesloraError, match="out of GPU memory"), memory_explained():
        runner("large", too_large, {})


def test_an_error_that_is_no_capture_s_is_raised(runner):
    def broken(inputs):
        raise KeyError("x")

    with pytest.raises(KeyError):
        runner("key", broken, {})
    with pytest.raises(KeyError):
        run_eagerly("key", broken, {})


def test_of_several_processes_none_falls_back_alone(runner):
    """The others would replay an all-reduce that this one launches."""
    runner.may_run_eagerly = False
    piece = piece_of(runner, [], fails=True)
    runner("key", piece, {"x": torch.zeros(1)})
    with pytest.raises(BayesloraError, match=r"operation not permitted.*--eager"):
        runner("key", piece, {"x": torch.zeros(1)})
